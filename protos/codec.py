"""Targets of one sequence at one step, as bytes: the only place that knows the payload format.

A payload is `MAGIC`, the header's length (uint32), the header (msgpack), then the buffers it lists,
each padded with zeros to start at a multiple of 8 bytes. All numbers are little-endian. Servers
send these bytes and stores keep these bytes. Reading checks everything before it is used, so
hostile bytes end in `PayloadError` and never in a large allocation: arrays are views of the payload
itself. A record is written in one way only and read in no other, so equal records are equal bytes.
"""

import hashlib
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import msgpack
import numpy as np

PAYLOAD_VERSION = 1
MAGIC = b"dLT1"
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 16 * 1024
# Far above what a header holds. msgpack makes an array as long as it claims to be before it reads
# the items, so without a limit 16 KiB of nested arrays take 78 MiB.
_MAX_HEADER_ITEMS = 64
_DIGEST_BYTES = 16
_PREFIX = struct.Struct("<4sI")

Payload = bytes | bytearray | memoryview
ValueDtype = Literal["f32", "f16", "bf16"]
# numpy has no bfloat16: its bits travel as uint16 and the reader reinterprets them.
_VALUE_NUMPY: Mapping[str, str] = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


class PayloadError(ValueError):
    """The bytes are not a payload that this version can read."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Values:
    """Numbers in a wire format: float32 or float16 arrays, or the uint16 bits of bfloat16."""

    dtype: ValueDtype
    data: np.ndarray

    def __post_init__(self) -> None:
        if self.dtype not in get_args(ValueDtype):
            raise PayloadError(f"dtype must be one of {get_args(ValueDtype)}, got {self.dtype!r}")
        if self.data.dtype != np.dtype(_VALUE_NUMPY[self.dtype]):
            raise PayloadError(f"dtype {self.dtype} does not fit an array of {self.data.dtype}")

    def to_float32(self) -> np.ndarray:
        """A float32 copy, of the same shape."""
        if self.dtype == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hidden:
    """Hidden states after the last norm, [M, D]; the reader applies the head."""

    values: Values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TopK:
    """At most K ids a position, ragged: row m owns entries row_offsets[m] to row_offsets[m + 1].

    `log_probs` are at temperature 1, normalised over the whole support. At temperature T the
    log-probability of a kept id is `log_probs / T - log_normalizers[T]`, which is exact because the
    normaliser is the log-sum-exp of the full row; `tail_log_masses[T]` is the log of all the mass
    outside the kept ids (-inf where nothing is outside).
    """

    row_offsets: np.ndarray
    """[M + 1] int32, from 0, ascending."""
    token_ids: np.ndarray
    """[sum of K] int32, ascending within a row."""
    log_probs: Values
    """[sum of K], nats."""
    temperatures: np.ndarray
    """[T] float32, each > 0."""
    log_normalizers: np.ndarray
    """[T, M] float32; 0 where the temperature is 1."""
    tail_log_masses: np.ndarray
    """[T, M] float32, nats."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Logits:
    """Log-probabilities of all V ids, [M, V]; -inf at the mask id."""

    values: Values


Distribution = Hidden | TopK | Logits
_ENCODING_NAMES: Mapping[type, str] = {Hidden: "hidden", TopK: "top_k", Logits: "logits"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepTargets:
    """The teacher's distributions for one sequence at one collected step, with what they are of."""

    sequence_id: int
    step: int
    """Step of the trajectory, from 0; 0 for a score."""
    time: float
    """Time t of the step, in [0, 1]; for a score the state's own as the client told it,
    or else the share of masked positions."""
    revision: str
    tokenizer_fingerprint: str
    state: np.ndarray | None
    """[L] int32 ids the teacher saw; None where the client made them and holds them itself."""
    state_digest: bytes
    """`state_digest` of the ids the teacher saw."""
    unmask_steps: np.ndarray | None
    """[L] int32 step that unmasked each position so far (-1 none); None for a score."""
    num_forwards: int
    """Forwards spent on the sequence so far, this one included."""
    positions: np.ndarray
    """[M] int32, ascending."""
    distribution: Distribution


def state_digest(token_ids: np.ndarray) -> bytes:
    """16 bytes that identify the ids of one state, [L] integers."""
    ids = np.ascontiguousarray(token_ids, dtype="<i4")
    return hashlib.blake2b(ids.data, digest_size=_DIGEST_BYTES).digest()


def encode_targets(targets: StepTargets) -> bytes:
    """Writes one payload."""
    buffers = _buffers(targets)
    header = _pack_header(targets, buffers)
    pieces: list[bytes | memoryview] = [_PREFIX.pack(MAGIC, len(header)), header]
    size = _PREFIX.size + len(header)
    for name, array in buffers.items():
        padding = -size % _ALIGNMENT
        data = np.ascontiguousarray(array, dtype=_buffer_dtype(name, targets.distribution))
        pieces += [bytes(padding), data.data.cast("B") if data.size else b""]
        size += padding + data.nbytes
    return b"".join(pieces)


def decode_targets(payload: Payload) -> StepTargets:
    """Reads one payload; the arrays are read-only views of it.

    Raises:
        PayloadError: the bytes are cut, altered, of another version, or inconsistent.
    """
    view = memoryview(payload).toreadonly().cast("B")
    header, start = _read_header(view)
    arrays = _read_buffers(view, start, header)
    targets = _build(header, arrays)
    _check_consistent(targets)
    if _pack_header(targets, _buffers(targets)) != view[_PREFIX.size : start]:
        # Other fields, a field twice, another order or another width of a number.
        raise PayloadError(f"header is not as payload version {PAYLOAD_VERSION} writes it")
    return targets


_INTEGERS = {"state", "unmask_steps", "positions", "row_offsets", "token_ids"}
_FLOATS = {"temperatures", "log_normalizers", "tail_log_masses"}
_EXPECTED_BUFFERS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "hidden": (("values", 2),),
    "logits": (("values", 2),),
    "top_k": (
        ("row_offsets", 1),
        ("token_ids", 1),
        ("values", 1),
        ("temperatures", 1),
        ("log_normalizers", 2),
        ("tail_log_masses", 2),
    ),
}
_COMMON_BUFFERS: Mapping[str, int] = {"state": 1, "unmask_steps": 1, "positions": 1}
_HEADER_FIELDS: Mapping[str, type] = {
    "version": int,
    "sequence_id": int,
    "step": int,
    "time": float,
    "revision": str,
    "tokenizer_fingerprint": str,
    "state_digest": bytes,
    "num_forwards": int,
    "encoding": str,
    "value_dtype": str,
    "shapes": dict,
}


def _values(distribution: Distribution) -> Values:
    return distribution.log_probs if isinstance(distribution, TopK) else distribution.values


def _buffers(targets: StepTargets) -> dict[str, np.ndarray]:
    """The arrays of a record by their names, in the order they are written."""
    arrays = {
        "state": targets.state,
        "unmask_steps": targets.unmask_steps,
        "positions": targets.positions,
        "values": _values(targets.distribution).data,
    }
    if isinstance(targets.distribution, TopK):
        for name, _ in _EXPECTED_BUFFERS["top_k"]:
            if name != "values":
                arrays[name] = getattr(targets.distribution, name)
    return {name: array for name, array in arrays.items() if array is not None}


def _pack_header(targets: StepTargets, buffers: Mapping[str, np.ndarray]) -> bytes:
    return msgpack.packb(
        {
            "version": PAYLOAD_VERSION,
            "sequence_id": targets.sequence_id,
            "step": targets.step,
            "time": targets.time,
            "revision": targets.revision,
            "tokenizer_fingerprint": targets.tokenizer_fingerprint,
            "state_digest": targets.state_digest,
            "num_forwards": targets.num_forwards,
            "encoding": _ENCODING_NAMES[type(targets.distribution)],
            "value_dtype": _values(targets.distribution).dtype,
            "shapes": {name: array.shape for name, array in buffers.items()},
        }
    )


def _buffer_dtype(name: str, distribution: Distribution) -> str:
    return _numpy_dtype(name, _values(distribution).dtype)


def _numpy_dtype(name: str, value_dtype: str) -> str:
    if name in _INTEGERS:
        return "<i4"
    return "<f4" if name in _FLOATS else _VALUE_NUMPY[value_dtype]


def _read_header(view: memoryview) -> tuple[dict, int]:
    if len(view) < _PREFIX.size:
        raise PayloadError(f"payload of {len(view)} bytes is shorter than its prefix")
    magic, length = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise PayloadError(f"payload starts with {magic!r}, not with {MAGIC!r}")
    end = _PREFIX.size + length
    if length > _MAX_HEADER_BYTES or end > len(view):
        raise PayloadError(f"header of {length} bytes does not fit (payload {len(view)} bytes)")
    try:
        header = msgpack.unpackb(
            view[_PREFIX.size : end],
            max_array_len=_MAX_HEADER_ITEMS,
            max_map_len=_MAX_HEADER_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise PayloadError(f"header is not msgpack: {error}") from error
    if not isinstance(header, dict):
        raise PayloadError(f"header is {type(header).__name__}, not a map")
    if header.get("version") != PAYLOAD_VERSION:
        raise PayloadError(
            f"payload version is {reprlib.repr(header.get('version'))}, "
            f"this program reads version {PAYLOAD_VERSION}"
        )
    for name, kind in _HEADER_FIELDS.items():
        if type(header.get(name)) is not kind:
            raise PayloadError(f"header field {name} must be {kind.__name__}")
    if header["encoding"] not in _EXPECTED_BUFFERS:
        raise PayloadError(f"unknown encoding {reprlib.repr(header['encoding'])}")
    if header["value_dtype"] not in _VALUE_NUMPY:
        raise PayloadError(f"unknown dtype {reprlib.repr(header['value_dtype'])}")
    return header, end


def _read_buffers(view: memoryview, start: int, header: dict) -> dict[str, np.ndarray]:
    expected = dict(_COMMON_BUFFERS) | dict(_EXPECTED_BUFFERS[header["encoding"]])
    arrays: dict[str, np.ndarray] = {}
    offset = start
    for name, shape in header["shapes"].items():
        if name not in expected or not _is_shape(shape, expected[name]):
            # reprlib: the plain text of a deeply nested list is a RecursionError.
            raise PayloadError(
                f"buffer {reprlib.repr(name)} with shape {reprlib.repr(shape)} is not expected"
            )
        dtype = np.dtype(_numpy_dtype(name, header["value_dtype"]))
        count = 1
        for length in shape:
            count *= length  # Python integers: no overflow to a small number
        padding = -offset % _ALIGNMENT
        if any(view[offset : offset + padding]):
            raise PayloadError(f"bytes before buffer {name!r} are not zero")
        offset += padding
        if offset + count * dtype.itemsize > len(view):
            raise PayloadError(f"buffer {name!r} with shape {shape} ends past the payload")
        arrays[name] = np.frombuffer(view, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    if offset != len(view):
        raise PayloadError(f"payload has {len(view)} bytes, its buffers end at {offset}")
    missing = expected.keys() - arrays.keys() - {"state", "unmask_steps"}
    if missing:
        raise PayloadError(f"buffers are missing: {', '.join(sorted(missing))}")
    return arrays


def _is_shape(shape: object, num_axes: int) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == num_axes
        and all(type(length) is int and 0 <= length < 2**31 for length in shape)
    )


def _build(header: dict, arrays: dict[str, np.ndarray]) -> StepTargets:
    values = Values(dtype=header["value_dtype"], data=arrays["values"])
    distribution: Distribution
    if header["encoding"] == "top_k":
        others = {name: arrays[name] for name, _ in _EXPECTED_BUFFERS["top_k"] if name != "values"}
        distribution = TopK(log_probs=values, **others)
    elif header["encoding"] == "hidden":
        distribution = Hidden(values=values)
    else:
        distribution = Logits(values=values)
    return StepTargets(
        sequence_id=header["sequence_id"],
        step=header["step"],
        time=header["time"],
        revision=header["revision"],
        tokenizer_fingerprint=header["tokenizer_fingerprint"],
        state=arrays.get("state"),
        state_digest=header["state_digest"],
        unmask_steps=arrays.get("unmask_steps"),
        num_forwards=header["num_forwards"],
        positions=arrays["positions"],
        distribution=distribution,
    )


def _check_consistent(targets: StepTargets) -> None:
    _check_numbers(targets)
    _check_state(targets)
    positions = targets.positions
    num_positions = len(positions)
    if num_positions and (positions[0] < 0 or not _ascends(positions)):
        raise PayloadError("positions must be ascending and not negative")
    if targets.state is not None and num_positions and positions[-1] >= len(targets.state):
        raise PayloadError(f"position {positions[-1]} is past a state of {len(targets.state)}")
    distribution = targets.distribution
    if isinstance(distribution, TopK):
        _check_top_k(distribution, num_positions)
    elif len(distribution.values.data) != num_positions:
        raise PayloadError(
            f"{len(distribution.values.data)} rows of values for {num_positions} positions"
        )


def _check_numbers(targets: StepTargets) -> None:
    if not -(2**63) <= targets.sequence_id < 2**63:
        raise PayloadError(f"sequence_id must be an int64, got {targets.sequence_id}")
    for name, number in (("step", targets.step), ("num_forwards", targets.num_forwards)):
        if not 0 <= number < 2**31:
            raise PayloadError(f"{name} must be in [0, 2**31), got {number}")
    if not 0.0 <= targets.time <= 1.0:
        raise PayloadError(f"time must be in [0, 1], got {targets.time}")
    if len(targets.state_digest) != _DIGEST_BYTES:
        raise PayloadError(f"state_digest must have {_DIGEST_BYTES} bytes")


def _check_state(targets: StepTargets) -> None:
    state, unmask_steps = targets.state, targets.unmask_steps
    if state is not None:
        if state.min(initial=0) < 0:
            raise PayloadError("ids of the state must not be negative")
        if state_digest(state) != targets.state_digest:
            raise PayloadError("state_digest is not that of the state")
    if unmask_steps is not None:
        if state is None or len(unmask_steps) != len(state):
            raise PayloadError("unmask_steps must have one entry per token of the state")
        if unmask_steps.min(initial=-1) < -1 or unmask_steps.max(initial=-1) >= targets.step:
            raise PayloadError(f"unmask_steps must be -1 or a step before {targets.step}")


def _check_top_k(distribution: TopK, num_positions: int) -> None:
    offsets, token_ids = distribution.row_offsets, distribution.token_ids
    num_kept = len(token_ids)
    if (
        len(offsets) != num_positions + 1
        or offsets[0] != 0
        or offsets[-1] != num_kept
        or (offsets[1:] < offsets[:-1]).any()
    ):
        raise PayloadError("row_offsets do not cut token_ids into one row per position")
    if len(distribution.log_probs.data) != num_kept:
        raise PayloadError("log_probs and token_ids differ in length")
    firsts = offsets[offsets < num_kept]
    ascends = token_ids[1:] > token_ids[:-1]
    # From the last of a row to the first of the next it may go down.
    ascends[firsts[firsts > 0] - 1] = True
    if not ascends.all():
        raise PayloadError("token_ids must be ascending within a row")
    # The first of a row is its smallest.
    if token_ids[firsts].min(initial=0) < 0:
        raise PayloadError("token_ids must not be negative")
    temperatures = distribution.temperatures
    if not np.all((temperatures > 0) & np.isfinite(temperatures)):
        raise PayloadError("temperatures must be positive")
    shape = (len(temperatures), num_positions)
    for name in ("log_normalizers", "tail_log_masses"):
        if getattr(distribution, name).shape != shape:
            raise PayloadError(f"{name} must have shape {shape}")


def _ascends(numbers: np.ndarray) -> bool:
    # Not by np.diff: a difference of two int32 may wrap round to the other sign.
    return bool((numbers[1:] > numbers[:-1]).all())
