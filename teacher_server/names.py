"""The proto's enum values and the names they have in the code: one table a kind, both ways."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from protos import errors
from protos import teacher_pb2 as pb

EncodingName = Literal["hidden", "top_k", "logits"]
DtypeName = Literal["f32", "f16", "bf16"]

ENCODINGS: Mapping[int, EncodingName] = {
    pb.ENCODING_HIDDEN: "hidden",
    pb.ENCODING_TOP_K: "top_k",
    pb.ENCODING_LOGITS: "logits",
}
DTYPES: Mapping[int, DtypeName] = {
    pb.VALUE_DTYPE_F32: "f32",
    pb.VALUE_DTYPE_F16: "f16",
    pb.VALUE_DTYPE_BF16: "bf16",
}
ALGORITHMS: Mapping[int, str] = {
    pb.ALGORITHM_ORIGIN: "origin",
    pb.ALGORITHM_MASKGIT_PLUS: "maskgit_plus",
    pb.ALGORITHM_TOPK_MARGIN: "topk_margin",
    pb.ALGORITHM_ENTROPY: "entropy",
    pb.ALGORITHM_P2: "p2",
}
CAPTURES: Mapping[int, str] = {
    pb.CAPTURE_KIND_NONE: "none",
    pb.CAPTURE_KIND_EVERY_N: "every_n",
    pb.CAPTURE_KIND_STEPS: "steps",
}

_NameT = TypeVar("_NameT", bound=str)


def name_of(table: Mapping[int, _NameT], value: int, *, enum: object, field: str) -> _NameT:
    """The name of an enum value.

    Raises:
        NotOfferedError: declared in the contract, not offered by this server.
        InvalidRequestError: not in the contract.
    """
    if value in table:
        return table[value]
    offered = ", ".join(enum.Name(known) for known in table)  # type: ignore[attr-defined]
    if value not in enum.values() or value == 0:  # type: ignore[attr-defined]
        raise errors.InvalidRequestError(
            f"{field} must be one of {offered}, got {value}", field=field
        )
    wanted = enum.Name(value)  # type: ignore[attr-defined]
    raise errors.NotOfferedError(
        f"{field} {wanted} is not offered by this server; offered: {offered}", field=field
    )
