"""The teacher's head on its way to a client: a part at a time, since the whole may be gigabytes."""

from collections.abc import Iterator

from masked_diffusion.families import Denoiser
from protos import parts
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.engine.values import dtype_name, to_values


def head_spec(denoiser: Denoiser, *, digest: str) -> pb.HeadSpec:
    """What the bytes of `head_chunks` are."""
    weight = denoiser.head_weight
    return pb.HeadSpec(
        digest=digest,
        dtype=names.value_of(names.DTYPES, dtype_name(weight.dtype)),
        vocab_size=denoiser.info.vocab_size,
        hidden_size=denoiser.info.hidden_size,
        has_bias=denoiser.head_bias is not None,
        logit_scale=1.0,
    )


def head_num_bytes(denoiser: Denoiser) -> int:
    """Bytes of all `head_chunks` together."""
    info = denoiser.info
    columns = info.hidden_size + (denoiser.head_bias is not None)
    return info.vocab_size * columns * denoiser.head_weight.element_size()


def head_chunks(denoiser: Denoiser) -> Iterator[bytes]:
    """Weight [vocab_size, hidden_size], row-major, then the bias; whole rows of about 1 MiB."""
    weight, bias, vocab_size = denoiser.head_weight, denoiser.head_bias, denoiser.info.vocab_size
    dtype = dtype_name(weight.dtype)
    num_rows = max(1, parts.MESSAGE_BYTES // (weight.shape[1] * weight.element_size()))
    for start in range(0, vocab_size, num_rows):
        rows = weight[start : min(start + num_rows, vocab_size)]
        yield to_values(rows, dtype).data.tobytes()
    if bias is not None:
        yield to_values(bias[:vocab_size], dtype).data.tobytes()
