"""What the front knows of a teacher that it serves, wherever the weights are."""

from dataclasses import dataclass

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, DenoiserInfo
from protos import codec
from teacher_server.engine.values import dtype_name


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFacts:
    """A denoiser without its weights."""

    info: DenoiserInfo
    revision: str
    dtype: codec.ValueDtype
    """Of the head, and of hidden states that come back."""
    device: str
    head_digest: str
    has_head_bias: bool
    num_head_bytes: int
    """Of the rows that the real vocabulary has, bias included."""


def facts_of(denoiser: Denoiser, *, revision: str | None = None) -> TeacherFacts:
    """Gathers them; None as revision computes it.

    Raises:
        ValueError: targets cannot carry its dtype.
    """
    info, weight = denoiser.info, denoiser.head_weight
    has_bias = denoiser.head_bias is not None
    return TeacherFacts(
        info=info,
        revision=checkpoints.weights_digest(denoiser) if revision is None else revision,
        dtype=dtype_name(weight.dtype),
        device=str(weight.device),
        head_digest=checkpoints.head_digest(denoiser),
        has_head_bias=has_bias,
        num_head_bytes=info.vocab_size * (info.hidden_size + has_bias) * weight.element_size(),
    )
