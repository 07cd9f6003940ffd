"""The teacher's head on its way to a client: a part at a time, since the whole may be gigabytes."""

from masked_diffusion.families import Denoiser
from protos import parts
from teacher_server.engine.values import dtype_name, to_values


def head_chunk(denoiser: Denoiser, index: int) -> bytes | None:
    """Weight [vocab_size, hidden_size], row-major, then the bias; whole rows of about 1 MiB.

    Returns:
        The chunk of this index, counted from 0; None behind the last.
    """
    weight, bias, vocab_size = denoiser.head_weight, denoiser.head_bias, denoiser.info.vocab_size
    dtype = dtype_name(weight.dtype)
    num_rows = max(1, parts.MESSAGE_BYTES // (weight.shape[1] * weight.element_size()))
    start = index * num_rows
    if start < vocab_size:
        return to_values(weight[start : min(start + num_rows, vocab_size)], dtype).data.tobytes()
    if bias is not None and start < vocab_size + num_rows:
        return to_values(bias[:vocab_size], dtype).data.tobytes()
    return None
