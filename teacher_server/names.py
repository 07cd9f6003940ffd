"""The proto's enum values and the names they have in the code: one table a kind, both ways."""

from collections.abc import Mapping
from typing import Literal, Protocol, TypeVar

from masked_diffusion import samplers
from masked_diffusion.families.info import Attention, Noise
from protos import codec, errors
from protos import teacher_pb2 as pb

EncodingName = Literal["hidden", "top_k", "logits"]

ENCODINGS: Mapping[pb.Encoding, EncodingName] = {
    pb.ENCODING_HIDDEN: "hidden",
    pb.ENCODING_TOP_K: "top_k",
    pb.ENCODING_LOGITS: "logits",
}
DTYPES: Mapping[pb.ValueDtype, codec.ValueDtype] = {
    pb.VALUE_DTYPE_F32: "f32",
    pb.VALUE_DTYPE_F16: "f16",
    pb.VALUE_DTYPE_BF16: "bf16",
}
ALGORITHMS: Mapping[pb.Algorithm, str] = {
    pb.ALGORITHM_ORIGIN: "origin",
    pb.ALGORITHM_MASKGIT_PLUS: "maskgit_plus",
    pb.ALGORITHM_TOPK_MARGIN: "topk_margin",
    pb.ALGORITHM_ENTROPY: "entropy",
    pb.ALGORITHM_P2: "p2",
    pb.ALGORITHM_MULTINOMIAL: "multinomial",
    pb.ALGORITHM_LOW_CONFIDENCE: "low_confidence",
    pb.ALGORITHM_RANDOM: "random",
    pb.ALGORITHM_LOW_CONFIDENCE_DYNAMIC: "low_confidence_dynamic",
    pb.ALGORITHM_ENTROPY_BOUNDED: "entropy_bounded",
    pb.ALGORITHM_ANCESTRAL: "ancestral",
}
ATTENTIONS: Mapping[pb.Attention, Attention] = {
    pb.ATTENTION_FULL: "full",
    pb.ATTENTION_BLOCK_CAUSAL: "block_causal",
}
NOISES: Mapping[pb.Noise, Noise] = {
    pb.NOISE_ABSORBING: "absorbing",
    pb.NOISE_UNIFORM: "uniform",
}
CAPTURES: Mapping[pb.CaptureKind, str] = {
    pb.CAPTURE_KIND_NONE: "none",
    pb.CAPTURE_KIND_EVERY_N: "every_n",
    pb.CAPTURE_KIND_STEPS: "steps",
}

_ValueT = TypeVar("_ValueT", bound=int)
_NameT = TypeVar("_NameT", bound=str)


def algorithms_for(noise: Noise) -> dict[pb.Algorithm, str]:
    """The algorithms that sample from a teacher of this noise."""
    offered = samplers.algorithms_for(noise)
    return {value: name for value, name in ALGORITHMS.items() if name in offered}


class _Enum(Protocol):
    """An enum of the contract, as protobuf generates it."""

    def Name(self, number: int) -> str: ...  # noqa: N802

    def values(self) -> list[int]: ...


def name_of(table: Mapping[_ValueT, _NameT], value: _ValueT, *, enum: _Enum, field: str) -> _NameT:
    """The name of an enum value.

    Raises:
        NotOfferedError: declared in the contract, not offered by this server.
        InvalidRequestError: not in the contract, or not given.
    """
    if value in table:
        return table[value]
    offered = ", ".join(enum.Name(known) for known in table)
    if value == 0 or value not in enum.values():
        raise errors.InvalidRequestError(
            f"{field} must be one of {offered}, got {value}", field=field
        )
    raise errors.NotOfferedError(
        f"{field} {enum.Name(value)} is not offered by this server; offered: {offered}",
        field=field,
    )


def value_of(table: Mapping[_ValueT, _NameT], name: _NameT) -> _ValueT:
    """The enum value of a name that is in the table."""
    return next(value for value, known in table.items() if known == name)
