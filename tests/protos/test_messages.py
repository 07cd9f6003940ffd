import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from protos import messages, parts
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage
from protos.parts import Part

LARGE = 20_000
NAMES = ("sequence_id", "step", "payload_bytes", "offset", "crc32c")

sizes = st.sampled_from([0, 1, 7, 100, LARGE, LARGE + 1, LARGE + 3])
some_parts = st.lists(
    st.builds(
        Part,
        sequence_id=st.integers(-(2**63), 2**63 - 1),
        step=st.integers(0, 2**31 - 1),
        payload_bytes=st.integers(0, 2**30),
        offset=st.integers(0, 2**30),
        data=sizes.map(lambda size: memoryview(bytes(range(256)) * (size // 256 + 1))[:size]),
        crc32c=st.integers(0, 2**32 - 1),
    ),
    max_size=4,
)
some_records = st.lists(
    st.builds(pb.TrajectoryRecord, sequence_id=st.integers(0, 9), token_ids=st.binary(max_size=9)),
    max_size=3,
)


def facts(message: TargetsMessage) -> tuple[list[tuple], list[bytes]]:
    """All that a message says."""
    return (
        [(*(getattr(part, name) for name in NAMES), bytes(part.data)) for part in message.parts],
        [record.SerializeToString() for record in message.trajectories],
    )


def by_protobuf(data: bytes) -> TargetsMessage:
    answer = pb.SampleTrajectoriesResponse.FromString(data)
    return TargetsMessage(answer.parts, answer.trajectories)


def to_protobuf(message: TargetsMessage) -> pb.SampleTrajectoriesResponse:
    """The same said by protobuf's own classes."""
    return pb.SampleTrajectoriesResponse(
        parts=[
            pb.TargetsPart(**{name: getattr(part, name) for name in NAMES}, data=bytes(part.data))
            for part in message.parts
        ],
        trajectories=message.trajectories,
    )


@given(some_parts, some_records)
def test_protobuf_reads_what_is_written_here(written, records):
    message = TargetsMessage(written, records)
    assert facts(by_protobuf(messages.to_bytes(message))) == facts(message)


@given(some_parts, some_records)
def test_what_protobuf_writes_is_read_here(written, records):
    message = TargetsMessage(written, records)
    data = to_protobuf(message).SerializeToString()
    assert facts(messages.read_trajectories(data)) == facts(message)


@given(some_parts, some_records)
def test_what_is_written_here_is_read_here(written, records):
    message = TargetsMessage(written, records)
    assert facts(messages.read_trajectories(messages.to_bytes(message))) == facts(message)


@given(some_parts)
def test_scores_are_read_as_trajectories_without_an_end_are(written):
    message = TargetsMessage(written)
    assert facts(messages.read_scores(messages.to_bytes(message))) == facts(message)


# --- any bytes --------------------------------------------------------------------------------


def varint(number: int, num_bytes: int) -> bytes:
    digits = [number >> 7 * place & 0x7F | 0x80 for place in range(num_bytes)]
    return bytes([*digits[:-1], digits[-1] & 0x7F])


def delimited(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(data), 4) + data


fields_of_a_part = st.one_of(
    # Known numbers and others, in varints of any length, also those that protobuf cuts.
    st.tuples(st.integers(1, 7), st.integers(0, 2**70 - 1), st.integers(1, 11)).map(
        lambda field: bytes([field[0] << 3]) + varint(field[1], field[2])
    ),
    st.integers(0, 200).map(lambda size: delimited(5, b"d" * (LARGE + size))),
    st.binary(max_size=3).map(lambda data: delimited(5, data)),
    st.tuples(st.integers(1, 7), st.binary(min_size=4, max_size=4)).map(
        lambda field: bytes([field[0] << 3 | 5]) + field[1]
    ),
    st.binary(max_size=12),
)
answers = st.lists(
    st.one_of(
        st.lists(fields_of_a_part, max_size=6).map(lambda all_: delimited(1, b"".join(all_))),
        st.binary(max_size=20).map(lambda data: delimited(2, data)),
        st.binary(max_size=6),
    ),
    max_size=4,
).map(b"".join)

LARGE_DATA = delimited(5, bytes(LARGE))


@given(answers, st.integers(0, 30))
@example(delimited(1, LARGE_DATA + varint(1 << 3, 1) + varint(2**63, 10)), 0)
@example(delimited(1, LARGE_DATA + b"\x10" + varint(2**31, 5)), 0)
@example(delimited(1, LARGE_DATA + b"\x10" + varint(2**32 + 1, 9)), 0)
@example(delimited(1, LARGE_DATA + LARGE_DATA), 0)
@example(delimited(1, LARGE_DATA + b"\x35\0\0\0"), 0)
@example(delimited(1, LARGE_DATA) + delimited(2, b"\x80"), 0)
@example(delimited(1, LARGE_DATA) + b"\x0a", 0)
@example(delimited(1, LARGE_DATA) + b"\x0a\xff\xff\xff\xff\x7f", 0)
def test_any_bytes_say_what_protobuf_says_they_do(data, num_cut):
    data = data[: len(data) - num_cut]
    try:
        expected = facts(by_protobuf(data))
    except DecodeError:
        with pytest.raises(DecodeError):
            messages.read_trajectories(data)
        return
    assert facts(messages.read_trajectories(data)) == expected
    scores = TargetsMessage(pb.ScoreStatesResponse.FromString(data).parts)
    assert facts(messages.read_scores(data)) == facts(scores)


# --- without a copy ---------------------------------------------------------------------------


def address(data: bytes | memoryview) -> int:
    return np.frombuffer(data, dtype=np.uint8).ctypes.data


@given(
    st.lists(st.integers(LARGE, LARGE + 9), min_size=1, max_size=5),
    st.integers(-(2**63), 2**63 - 1),
)
def test_large_data_lie_in_the_message_itself_at_multiples_of_four_bytes(sizes, sequence_id):
    (packed,) = parts.pack_parts((sequence_id, step, bytes(n)) for step, n in enumerate(sizes))
    data = messages.to_bytes(TargetsMessage(packed))
    # protobuf writes numbers below zero in ten bytes, which are left to it.
    read = messages.read_scores(data).parts
    assert [len(part.data) for part in read] == sizes
    if sequence_id >= 0:
        for part in read:
            assert (address(part.data) - address(data)) % 4 == 0
            assert address(data) <= address(part.data) < address(data) + len(data)
