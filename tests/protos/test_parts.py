import itertools
import tracemalloc
from collections.abc import Iterable

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import channel, codec, errors, parts
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage, to_bytes
from tests.protos import records

KIB = 1024


def payload_of(num_bytes: int, *, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


def over_the_wire(messages: Iterable[list[parts.Part]]) -> list[pb.ScoreStatesResponse]:
    """The messages as the other side parses them."""
    return [
        pb.ScoreStatesResponse.FromString(to_bytes(TargetsMessage(message))) for message in messages
    ]


def parts_of(
    payload: bytes, *, message_bytes: int = 100, sequence_id: int = 1, step: int = 0
) -> list[pb.TargetsPart]:
    """One payload as parts that arrived."""
    messages = parts.pack_parts([(sequence_id, step, payload)], message_bytes=message_bytes)
    return [part for message in over_the_wire(messages) for part in message.parts]


def altered(part: pb.TargetsPart, **changes: object) -> pb.TargetsPart:
    """A copy with other fields; its checksum fits its data unless it is named."""
    copy = pb.TargetsPart.FromString(part.SerializeToString())
    for name, value in changes.items():
        setattr(copy, name, value)
    if "crc32c" not in changes:
        copy.crc32c = google_crc32c.value(copy.data)
    return copy


def put_together(
    arrived: Iterable[pb.TargetsPart], assembler: parts.PayloadAssembler | None = None
) -> list[tuple[int, int, bytes]]:
    """Whole payloads in the order they become whole."""
    assembler = assembler or parts.PayloadAssembler()
    whole = []
    for part in arrived:
        payload = assembler.add((part.sequence_id, part.step), part)
        if payload is not None:
            whole.append((part.sequence_id, part.step, bytes(payload)))
    return whole


# --- cutting and grouping ---------------------------------------------------------------------


def test_a_payload_larger_than_a_message_is_split_and_every_message_stays_in_bounds():
    payload = payload_of(3 * parts.MESSAGE_BYTES + 5)

    messages = over_the_wire(parts.pack_parts([(1, 2, payload)]))

    assert [len(part.data) for message in messages for part in message.parts] == [
        parts.MESSAGE_BYTES,
        parts.MESSAGE_BYTES,
        parts.MESSAGE_BYTES,
        5,
    ]
    for message in messages:
        assert sum(len(part.data) for part in message.parts) <= parts.MESSAGE_BYTES
        assert message.ByteSize() <= parts.MESSAGE_BYTES + KIB


def test_small_payloads_share_a_message_in_order():
    payloads = [(index, 0, payload_of(900, seed=index)) for index in range(2500)]

    messages = over_the_wire(parts.pack_parts(payloads))

    assert [len(message.parts) for message in messages] == [1165, 1165, 170]
    assert [part.sequence_id for message in messages for part in message.parts] == list(range(2500))
    assert all(message.ByteSize() < 2 * parts.MESSAGE_BYTES for message in messages)


def test_the_smallest_records_still_fit_a_message_of_the_channel():
    record = codec.encode_targets(records.example("hidden", positions=(), length=None))
    num_records = 3 * parts.MESSAGE_BYTES // len(record)

    messages = over_the_wire(
        parts.pack_parts((2**62 + index, 2**30, record) for index in range(num_records))
    )

    assert len(messages) >= 3
    assert max(message.ByteSize() for message in messages) < channel.MAX_MESSAGE_BYTES / 2


def test_a_part_says_whose_it_is_where_it_begins_and_what_its_checksum_is():
    payload = payload_of(250)

    arrived = parts_of(payload, sequence_id=-5, step=7)

    assert [(part.sequence_id, part.step) for part in arrived] == [(-5, 7)] * 3
    assert [part.payload_bytes for part in arrived] == [250] * 3
    assert [part.offset for part in arrived] == [0, 100, 200]
    assert b"".join(part.data for part in arrived) == payload
    for part in arrived:
        assert part.crc32c == bitwise_crc32c(part.data)


def bitwise_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit: RFC 3720, section 12.1, with the polynomial reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_crc_32c():
    # The check value of the catalogue of CRC algorithms, and RFC 3720, section B.4.
    assert parts.crc32c(b"123456789") == 0xE3069283
    assert parts.crc32c(bytes(32)) == 0x8A9136AA


def test_no_payloads_make_no_message():
    assert list(parts.pack_parts([])) == []


@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(1, 16),
)
def test_any_payloads_come_back_in_order_from_messages_within_the_size(sizes, message_bytes):
    payloads = [(index, 0, payload_of(size, seed=index)) for index, size in enumerate(sizes)]

    messages = over_the_wire(parts.pack_parts(payloads, message_bytes=message_bytes))

    for message in messages:
        assert message.parts
        assert sum(len(part.data) for part in message.parts) <= message_bytes
    assert put_together(part for message in messages for part in message.parts) == payloads


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 16))
def test_two_messages_in_a_row_would_not_have_fitted_in_one(sizes, message_bytes):
    payloads = [(index, 0, payload_of(size)) for index, size in enumerate(sizes)]

    messages = list(parts.pack_parts(payloads, message_bytes=message_bytes))

    for message, following in itertools.pairwise(messages):
        num_bytes = sum(len(part.data) for part in message)
        assert num_bytes + len(following[0].data) > message_bytes


# --- putting together -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 350), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_interleaved_records_of_several_sequences_come_back_whole(sizes, random):
    payloads = {index: payload_of(size, seed=index) for index, size in enumerate(sizes)}
    waiting = {index: parts_of(data, sequence_id=index) for index, data in payloads.items()}
    arrived = []
    while waiting:
        index = random.choice(sorted(waiting))
        arrived.append(waiting[index].pop(0))
        if not waiting[index]:
            del waiting[index]
    assembler = parts.PayloadAssembler()

    whole = put_together(arrived, assembler)

    assert {sequence_id: payload for sequence_id, _, payload in whole} == payloads
    assert len(whole) == len(payloads)
    assert assembler.num_open == 0


def test_records_of_one_sequence_come_back_step_by_step():
    payloads = [(4, step, payload_of(150, seed=step)) for step in (0, 1, 5)]

    arrived = [part for payload in payloads for part in parts_of(payload[2], step=payload[1])]

    assert [(step, payload) for _, step, payload in put_together(arrived)] == [
        (step, payload) for _, step, payload in payloads
    ]


def test_a_record_that_was_read_from_parts_decodes():
    record = records.example("logits")
    payload = codec.encode_targets(record)

    ((_, _, whole),) = put_together(parts_of(payload, message_bytes=64))

    assert records.content(codec.decode_targets(whole)) == records.content(record)


def test_the_parts_of_a_head_come_back_whole():
    payload = payload_of(2500)
    assembler = parts.PayloadAssembler()

    found = [
        assembler.add(
            (0, 0),
            pb.GetHeadResponse(
                payload_bytes=len(payload),
                offset=offset,
                data=payload[offset : offset + KIB],
                crc32c=parts.crc32c(payload[offset : offset + KIB]),
            ),
        )
        for offset in range(0, len(payload), KIB)
    ]

    assert found == [None, None, payload]


def test_a_record_of_which_parts_are_missing_is_counted_open():
    assembler = parts.PayloadAssembler()

    assert put_together(parts_of(payload_of(250))[:-1], assembler) == []
    assert assembler.num_open == 1


FIRST, SECOND, LAST = parts_of(payload_of(250))
(SINGLE,) = parts_of(payload_of(80), sequence_id=2)

CORRUPT: dict[str, list[pb.TargetsPart]] = {
    "the first part is missing": [SECOND],
    "a part between is missing": [FIRST, LAST],
    "the first part twice": [FIRST, FIRST],
    "a part between twice": [FIRST, SECOND, SECOND],
    "the last part twice": [FIRST, SECOND, LAST, LAST],
    "a whole record twice": [FIRST, SECOND, LAST, FIRST],
    "a record in one part twice": [SINGLE, SINGLE],
    "a whole record within the same record": [FIRST, altered(FIRST, payload_bytes=100)],
    "the last part first": [LAST],
    "a step before one that came": [
        altered(SINGLE, step=2),
        altered(SINGLE, step=1),
    ],
    "a step before one that came, in parts": [
        altered(SINGLE, sequence_id=1, step=2),
        altered(FIRST, step=1),
    ],
    "data altered": [altered(SINGLE, data=b"\1" * 80, crc32c=SINGLE.crc32c)],
    "data cut": [altered(SINGLE, data=SINGLE.data[:-1], crc32c=SINGLE.crc32c)],
    "checksum altered": [altered(SINGLE, crc32c=SINGLE.crc32c ^ 1)],
    "checksum missing": [altered(SINGLE, crc32c=0)],
    "part cut, with its checksum": [FIRST, altered(SECOND, data=SECOND.data[:-1]), LAST],
    "part longer than the payload": [altered(SINGLE, data=bytes(81))],
    "last part longer than the payload": [FIRST, SECOND, altered(LAST, data=bytes(51))],
    "empty part": [altered(SINGLE, data=b"")],
    "empty part between": [FIRST, altered(SECOND, data=b"")],
    "offset negative": [altered(FIRST, offset=-1)],
    "offset past the payload": [altered(SINGLE, offset=80)],
    "offset at the end of int64": [altered(SINGLE, offset=2**63 - 1)],
    "size negative": [altered(SINGLE, payload_bytes=-1)],
    "size zero with data": [altered(SINGLE, payload_bytes=0)],
    "size above the limit": [altered(SINGLE, payload_bytes=parts.MAX_PAYLOAD_BYTES + 1)],
    "size at the end of int64": [altered(SINGLE, payload_bytes=2**63 - 1)],
    "size grows between parts": [FIRST, altered(SECOND, payload_bytes=300)],
    "size shrinks between parts": [FIRST, altered(SECOND, payload_bytes=200)],
}


@pytest.mark.parametrize("name", CORRUPT)
def test_parts_that_do_not_fit_are_a_corrupt_stream(name):
    *before, last = CORRUPT[name]
    assembler = parts.PayloadAssembler()
    put_together(before, assembler)
    num_open = assembler.num_open

    with pytest.raises(errors.CorruptStreamError):
        put_together([last], assembler)

    # What failed opens nothing.
    assert assembler.num_open == num_open


@given(st.data())
def test_a_stream_with_one_change_is_found_out_or_gives_exact_payloads(data):
    payloads = [(index, 0, payload_of(size, seed=index)) for index, size in enumerate((250, 80, 1))]
    stream = [
        part for index, _, payload in payloads for part in parts_of(payload, sequence_id=index)
    ]
    index = data.draw(st.integers(0, len(stream) - 1))
    change = data.draw(st.sampled_from(["drop", "twice", "swap", "data", "crc32c", "cut"]))
    part = stream[index]
    if change == "drop":
        del stream[index]
    elif change == "twice":
        stream.insert(data.draw(st.integers(0, len(stream))), part)
    elif change == "swap":
        other = data.draw(st.integers(0, len(stream) - 1))
        stream[index], stream[other] = stream[other], part
    elif change == "data":
        flipped = bytearray(part.data)
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        stream[index] = altered(part, data=bytes(flipped), crc32c=part.crc32c)
    elif change == "crc32c":
        stream[index] = altered(part, crc32c=part.crc32c ^ 1 << data.draw(st.integers(0, 31)))
    else:
        stream = stream[:index]

    try:
        whole = put_together(stream)
    except errors.CorruptStreamError:
        return

    assert set(whole) <= set(payloads)
    assert len(whole) == len(set(whole))
    # A record that is wholly missing is for the caller, who knows what it asked for.
    assert change in ("drop", "swap", "cut")


# --- memory -----------------------------------------------------------------------------------


def test_a_payload_that_claims_to_be_large_takes_no_memory_before_it_arrives():
    claim = altered(FIRST, payload_bytes=parts.MAX_PAYLOAD_BYTES)
    assembler = parts.PayloadAssembler()

    tracemalloc.start()
    try:
        assert assembler.add((1, 0), claim) is None
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 64 * KIB


def test_a_payload_above_the_limit_of_the_assembler_is_refused_at_its_first_part():
    assembler = parts.PayloadAssembler(max_payload_bytes=249)

    with pytest.raises(errors.CorruptStreamError, match=r"payload of 250 bytes .* limit 249"):
        put_together([FIRST], assembler)


def test_a_payload_at_the_limit_of_the_assembler_is_read():
    assembler = parts.PayloadAssembler(max_payload_bytes=250)

    assert len(put_together([FIRST, SECOND, LAST], assembler)) == 1


def test_payloads_that_never_end_are_refused_once_they_fill_the_limit_together():
    assembler = parts.PayloadAssembler(max_payload_bytes=1000)

    with pytest.raises(errors.CorruptStreamError, match="1100 bytes in 10 payloads wait"):
        put_together((altered(FIRST, sequence_id=index) for index in range(20)), assembler)

    assert assembler.num_open == 10


def test_room_of_a_payload_that_became_whole_is_free_again():
    assembler = parts.PayloadAssembler(max_payload_bytes=300)

    for index in range(20):
        assert put_together(parts_of(payload_of(250), sequence_id=index), assembler)


def test_many_payloads_of_which_one_byte_came_are_refused_at_little_memory():
    part = altered(FIRST, data=b"1")
    assembler = parts.PayloadAssembler()

    tracemalloc.start()
    try:
        with pytest.raises(errors.CorruptStreamError, match="wait for more"):
            for index in range(100_000):
                assembler.add((index, 0), part)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 4 * KIB * KIB
