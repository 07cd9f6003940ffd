"""Messages of targets as bytes, with a single copy of what they carry.

protobuf's own classes copy a payload into an arena, out of it into the message, and twice more on
the other side. Here a message is one join of its pieces, and what is read are views of the message.
The bytes are those of the contract, so either end may use protobuf's classes instead; whatever the
reader does not know at sight goes to protobuf's parser, which decides what is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from protos import teacher_pb2 as pb
from protos.parts import Part

# Tags: of both answers the fields 1 and 2, of a part the fields 4, 5 and 6.
_PARTS, _TRAJECTORIES, _OFFSET, _DATA, _CRC32C = 0x0A, 0x12, 0x20, 0x2A, 0x35
# Tag and largest value; protobuf cuts larger ones to the field's own width.
_VARINTS = {
    0x08: ("sequence_id", 2**63 - 1),
    0x10: ("step", 2**31 - 1),
    0x18: ("payload_bytes", 2**63 - 1),
    _OFFSET: ("offset", 2**63 - 1),
}
_CRC32C_BYTES = 4
_MORE = 0x80
_ALIGNMENT = 4
# Lengths of what a message may hold, and offsets in the largest payload, 1 GiB.
_LENGTH_BYTES, _OFFSET_BYTES = 4, 5
# Below it protobuf copies faster than this file writes and reads.
_MIN_VIEW_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class TargetsMessage:
    """What a `ScoreStatesResponse` or a `SampleTrajectoriesResponse` holds."""

    parts: Sequence[Part | pb.TargetsPart]
    trajectories: Sequence[pb.TrajectoryRecord] = ()
    """Of `SampleTrajectoriesResponse` alone."""


def to_bytes(message: TargetsMessage) -> bytes:
    """The message of the contract."""
    pieces: list[bytes | memoryview] = []
    size = 0
    for part in message.parts:
        size += _add_part(pieces, size, part)
    for record in message.trajectories:
        _add_field(pieces, _TRAJECTORIES, record.SerializeToString())
    return b"".join(pieces)


def _add_field(pieces: list[bytes | memoryview], tag: int, data: bytes) -> int:
    """Adds a field of the answer; returns its bytes."""
    head = bytes((tag,)) + _varint(len(data))
    pieces += [head, data]
    return len(head) + len(data)


def _add_part(pieces: list[bytes | memoryview], start: int, part: Part | pb.TargetsPart) -> int:
    """Adds one part to a message of `start` bytes; returns how many more these are.

    The data begin at a multiple of 4 bytes, so that the numbers in them can be used where they lie.
    A varint may be longer than it must be: the offset's makes up what is missing.
    """
    fields = pb.TargetsPart(
        sequence_id=part.sequence_id,
        step=part.step,
        payload_bytes=part.payload_bytes,
        crc32c=part.crc32c,
    )
    if len(part.data) < _MIN_VIEW_BYTES:
        fields.offset, fields.data = part.offset, bytes(part.data)
        return _add_field(pieces, _PARTS, fields.SerializeToString())
    others = fields.SerializeToString()
    num_before = 1 + _LENGTH_BYTES + len(others) + 1 + _OFFSET_BYTES + 1 + _LENGTH_BYTES
    padding = -(start + num_before) % _ALIGNMENT
    num_bytes = num_before + padding + len(part.data)
    pieces += [
        bytes((_PARTS,)),
        _varint(num_bytes - 1 - _LENGTH_BYTES, num_bytes=_LENGTH_BYTES),
        others,
        bytes((_OFFSET,)),
        _varint(part.offset, num_bytes=_OFFSET_BYTES + padding),
        bytes((_DATA,)),
        _varint(len(part.data), num_bytes=_LENGTH_BYTES),
        part.data,
    ]
    return num_bytes


def _varint(number: int, *, num_bytes: int = 1) -> bytes:
    """The number, seven bits a byte, in at least so many bytes."""
    digits = bytearray()
    while number >= _MORE or len(digits) < num_bytes - 1:
        digits.append(number & 0x7F | _MORE)
        number >>= 7
    digits.append(number)
    return bytes(digits)


class _UnknownFormError(Exception):
    """Not as this file writes it; it may well be right."""


def read_scores(message: bytes) -> TargetsMessage:
    """Reads a `ScoreStatesResponse`; data of parts are views of it where the first is large.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    try:
        return _read(message, with_trajectories=False)
    except _UnknownFormError:
        return TargetsMessage(pb.ScoreStatesResponse.FromString(message).parts)


def read_trajectories(message: bytes) -> TargetsMessage:
    """Reads a `SampleTrajectoriesResponse`; data of parts as with `read_scores`.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    try:
        return _read(message, with_trajectories=True)
    except (_UnknownFormError, DecodeError):
        answer = pb.SampleTrajectoriesResponse.FromString(message)
        return TargetsMessage(answer.parts, answer.trajectories)


def _read(message: bytes, *, with_trajectories: bool) -> TargetsMessage:
    view = memoryview(message)
    parts: list[Part] = []
    trajectories: list[pb.TrajectoryRecord] = []
    position = 0
    while position < len(message):
        tag = message[position]
        start, position = _read_length(message, position + 1, len(message))
        if tag == _PARTS and (parts or position - start >= _MIN_VIEW_BYTES):
            parts.append(_read_part(view, start, position))
        elif tag == _TRAJECTORIES and with_trajectories:
            trajectories.append(pb.TrajectoryRecord.FromString(message[start:position]))
        else:
            raise _UnknownFormError
    return TargetsMessage(parts, trajectories)


def _read_part(view: memoryview, position: int, end: int) -> Part:
    # A field that is absent is zero, and the last of several counts.
    numbers = {"sequence_id": 0, "step": 0, "payload_bytes": 0, "offset": 0, "crc32c": 0}
    data = view[:0]
    while position < end:
        tag = view[position]
        position += 1
        if tag in _VARINTS:
            name, largest = _VARINTS[tag]
            numbers[name], position = _read_varint(view, position, end)
            if numbers[name] > largest:
                raise _UnknownFormError
        elif tag == _DATA:
            start, position = _read_length(view, position, end)
            data = view[start:position]
        elif tag == _CRC32C and position + _CRC32C_BYTES <= end:
            after = position + _CRC32C_BYTES
            numbers["crc32c"] = int.from_bytes(view[position:after], "little")
            position = after
        else:
            raise _UnknownFormError
    return Part(data=data, **numbers)


def _read_length(view: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """Start and end of what has its length before it."""
    length, start = _read_varint(view, position, min(end, position + _LENGTH_BYTES))
    if start + length > end:
        raise _UnknownFormError
    return start, start + length


def _read_varint(view: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """The number, and what comes behind it."""
    number = shift = 0
    # Nine bytes hold 63 bits; the tenth is there in negative numbers alone.
    for place in range(position, min(end, position + 9)):
        digit = view[place]
        number |= (digit & 0x7F) << shift
        if digit < _MORE:
            return number, place + 1
        shift += 7
    raise _UnknownFormError
