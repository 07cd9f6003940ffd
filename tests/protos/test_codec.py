import itertools
import struct
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos import codec
from tests.protos import records
from tests.protos.records import DTYPES, ENCODINGS, int32

_PREFIX_BYTES = 8
# Reading a bad header costs at most a few objects per byte of it, whatever it claims.
_MAX_PEAK_BYTES = 2 * 1024 * 1024


# --- writing and reading ---------------------------------------------------------------------


@given(records.step_targets())
def test_a_record_comes_back_bit_for_bit(record):
    decoded = codec.decode_targets(codec.encode_targets(record))

    assert records.content(decoded) == records.content(record)


@given(records.step_targets())
def test_the_bytes_of_a_record_that_was_read_are_the_bytes_it_was_read_from(record):
    payload = codec.encode_targets(record)

    assert codec.encode_targets(codec.decode_targets(payload)) == payload


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("positions", "length"),
    [((), 6), ((), 1), ((), None), ((0,), 1), ((3,), 6), ((0, 1, 2), 3), ((2, 5), None)],
)
def test_sets_of_none_one_and_all_positions_come_back(encoding, dtype, positions, length):
    record = records.example(encoding, dtype=dtype, positions=positions, length=length)

    decoded = codec.decode_targets(codec.encode_targets(record))

    assert records.content(decoded) == records.content(record)


@pytest.mark.parametrize("temperatures", [(), (1.0,), (0.5, 1.0, 2.0, 8.0)])
def test_a_row_that_keeps_the_whole_vocabulary_comes_back_with_tails_of_no_mass(temperatures):
    whole = records.top_k([[0, 1, 2, 3], [], [3]], temperatures=temperatures, dtype="f32")
    record = replace(records.example(positions=(0, 2, 5)), distribution=whole)

    decoded = codec.decode_targets(codec.encode_targets(record)).distribution

    assert isinstance(decoded, codec.TopK)
    assert decoded.row_offsets.tolist() == [0, 4, 4, 5]
    assert decoded.tail_log_masses.shape == (len(temperatures), 3)
    assert np.all(np.isneginf(decoded.tail_log_masses))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("kind", [codec.Hidden, codec.Logits])
def test_every_pattern_of_16_bits_comes_back(dtype, kind):
    patterns = np.arange(2**16, dtype=np.uint16).reshape(2, -1)
    data = patterns.view("<f2") if dtype == "f16" else patterns
    record = replace(
        records.example(), distribution=kind(values=codec.Values(dtype=dtype, data=data))
    )

    decoded = codec.decode_targets(codec.encode_targets(record)).distribution

    assert isinstance(decoded, kind)
    np.testing.assert_array_equal(decoded.values.data.view(np.uint16), patterns)


def test_float32_nans_keep_their_sign_and_payload():
    patterns = np.array([[0x7FC00000, 0xFFC00000], [0x7F800001, 0xFFBADBAD]], dtype=np.uint32)
    data = codec.Values(dtype="f32", data=patterns.view("<f4"))
    record = replace(records.example(), distribution=codec.Hidden(values=data))

    decoded = codec.decode_targets(codec.encode_targets(record)).distribution

    assert isinstance(decoded, codec.Hidden)
    assert decoded.values.data.tobytes() == patterns.tobytes()


def test_strided_arrays_are_written_in_row_order():
    data = codec.Values(dtype="f32", data=np.arange(6, dtype=np.float32).reshape(3, 2).T)
    record = replace(records.example(), distribution=codec.Hidden(values=data))

    decoded = codec.decode_targets(codec.encode_targets(record)).distribution

    assert isinstance(decoded, codec.Hidden)
    assert decoded.values.data.tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_copies_equal_those_of_torch(dtype):
    data = records.values(dtype, (2**16,))
    torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    expected = torch.frombuffer(bytearray(data.data.tobytes()), dtype=torch_dtype).float().numpy()

    converted = data.to_float32()

    assert not np.shares_memory(converted, data.data)
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("f32", np.zeros(2)),
        ("f16", np.zeros(2, dtype=np.float32)),
        ("bf16", np.zeros(2, dtype=np.float16)),
        ("f64", np.zeros(2)),
    ],
)
def test_values_refuse_an_array_of_another_dtype(dtype, array):
    with pytest.raises(codec.PayloadError, match="dtype"):
        codec.Values(dtype=dtype, data=array)


def test_a_digest_is_of_the_ids_and_not_of_how_they_are_stored():
    ids = [5, 0, 151_665]

    digests = {codec.state_digest(np.array(ids, dtype)) for dtype in ("<i4", ">i4", "<i8")}

    assert len(digests) == 1
    assert [len(digest) for digest in digests] == [16]
    assert codec.state_digest(int32([5, 0, 151_664])) not in digests
    assert codec.state_digest(int32([])) not in digests


# --- the format ------------------------------------------------------------------------------


def write(header: object, buffers: list[bytes]) -> bytes:
    """The format, plainly: what a program without our codec would write."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    payload = b"dLT1" + struct.pack("<I", len(packed)) + packed
    for buffer in buffers:
        while len(payload) % 8:
            payload += b"\0"
        payload += buffer
    return payload


def plain(record: codec.StepTargets) -> tuple[dict, list[bytes]]:
    """Header and buffers of a record, for tests to spoil."""
    distribution = record.distribution
    arrays = {
        "state": record.state,
        "unmask_steps": record.unmask_steps,
        "positions": record.positions,
    }
    if isinstance(distribution, codec.TopK):
        data = distribution.log_probs
        encoding = "top_k"
        arrays |= {
            "values": data.data,
            "row_offsets": distribution.row_offsets,
            "token_ids": distribution.token_ids,
            "temperatures": distribution.temperatures,
            "log_normalizers": distribution.log_normalizers,
            "tail_log_masses": distribution.tail_log_masses,
        }
    else:
        data = distribution.values
        encoding = "hidden" if isinstance(distribution, codec.Hidden) else "logits"
        arrays["values"] = data.data
    present = {name: array for name, array in arrays.items() if array is not None}
    header = {
        "version": 1,
        "sequence_id": record.sequence_id,
        "step": record.step,
        "time": record.time,
        "revision": record.revision,
        "tokenizer_fingerprint": record.tokenizer_fingerprint,
        "state_digest": record.state_digest,
        "num_forwards": record.num_forwards,
        "encoding": encoding,
        "value_dtype": data.dtype,
        "shapes": {name: list(array.shape) for name, array in present.items()},
    }
    return header, [array.tobytes() for array in present.values()]


@given(records.step_targets())
def test_a_payload_is_as_the_plain_writer_of_the_format_makes_it(record):
    assert codec.encode_targets(record) == write(*plain(record))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_arrays_are_read_only_views_at_multiples_of_8_bytes(encoding):
    payload = np.frombuffer(codec.encode_targets(records.example(encoding)), dtype=np.uint8)

    decoded = codec.decode_targets(payload.data)

    distribution = decoded.distribution
    data = distribution.log_probs if isinstance(distribution, codec.TopK) else distribution.values
    for array in (decoded.state, decoded.unmask_steps, decoded.positions, data.data):
        assert array is not None
        assert np.shares_memory(array, payload)
        assert not array.flags.writeable
        assert (array.ctypes.data - payload.ctypes.data) % 8 == 0


def test_views_of_a_buffer_that_may_be_written_are_read_only_too():
    decoded = codec.decode_targets(bytearray(codec.encode_targets(records.example())))

    with pytest.raises(ValueError, match="read-only"):
        decoded.positions[0] = 0


@pytest.mark.parametrize("skip", range(1, 9))
def test_a_payload_may_lie_at_any_address(skip):
    record = records.example()
    payload = codec.encode_targets(record)

    decoded = codec.decode_targets(memoryview(bytes(skip) + payload)[skip:])

    assert records.content(decoded) == records.content(record)


def test_reading_copies_nothing_of_a_large_payload():
    data = codec.Values(dtype="f32", data=np.zeros((2, 2**21), dtype=np.float32))
    payload = codec.encode_targets(
        replace(records.example(), distribution=codec.Logits(values=data))
    )
    assert len(payload) > 16 * 1024 * 1024

    assert peak_bytes(lambda: codec.decode_targets(payload)) < _MAX_PEAK_BYTES


# --- hostile bytes ---------------------------------------------------------------------------


def peak_bytes(function: Callable[[], object]) -> int:
    """Memory that a call had at most at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_refused(payload: bytes, match: str | None = None) -> None:
    """Asserts the one error there is for bad bytes, short, and at no cost of memory."""

    def read() -> None:
        with pytest.raises(codec.PayloadError, match=match) as caught:
            codec.decode_targets(payload)
        assert len(str(caught.value)) < 500

    assert peak_bytes(read) < _MAX_PEAK_BYTES


def assert_refused_or_exact(payload: bytes) -> None:
    """Asserts that bytes are refused, or else read as a consistent record and nothing more."""
    try:
        record = codec.decode_targets(payload)
    except codec.PayloadError:
        return
    assert_consistent(record)
    # Nothing in the bytes was passed over.
    assert codec.encode_targets(record) == payload


def assert_consistent(record: codec.StepTargets) -> None:
    """The contract of StepTargets, with loops where the codec has arrays."""
    positions = record.positions.tolist()
    assert -(2**63) <= record.sequence_id < 2**63
    assert record.step in range(2**31)
    assert record.num_forwards in range(2**31)
    assert 0 <= record.time <= 1
    assert len(record.state_digest) == 16
    assert positions == sorted(set(positions))
    assert all(position >= 0 for position in positions)
    if record.state is not None:
        assert all(token_id >= 0 for token_id in record.state.tolist())
        assert all(position < len(record.state) for position in positions)
        assert codec.state_digest(record.state) == record.state_digest
    if record.unmask_steps is not None:
        assert record.state is not None
        assert len(record.unmask_steps) == len(record.state)
        assert all(-1 <= step < record.step for step in record.unmask_steps.tolist())
    distribution = record.distribution
    if not isinstance(distribution, codec.TopK):
        assert distribution.values.data.ndim == 2
        assert len(distribution.values.data) == len(positions)
        return
    offsets, token_ids = distribution.row_offsets.tolist(), distribution.token_ids.tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(token_ids) == len(distribution.log_probs.data)
    assert len(offsets) == len(positions) + 1
    for start, end in itertools.pairwise(offsets):
        assert 0 <= start <= end
        row = token_ids[start:end]
        assert row == sorted(set(row))
        assert all(token_id >= 0 for token_id in row)
    temperatures = distribution.temperatures.tolist()
    assert all(0 < temperature < np.inf for temperature in temperatures)
    shape = (len(temperatures), len(positions))
    assert distribution.log_normalizers.shape == distribution.tail_log_masses.shape == shape


@given(st.binary(max_size=600))
def test_random_bytes_are_refused(payload):
    assert_refused(payload)


@given(st.binary(max_size=600))
def test_a_header_of_random_bytes_is_refused(header):
    assert_refused(write(header, []))


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda items: st.lists(items) | st.dictionaries(st.text() | st.binary(), items),
    max_leaves=20,
)


@given(st.data())
def test_a_header_with_one_field_of_any_value_is_refused_or_read_exactly(data):
    header, buffers = plain(records.example(data.draw(st.sampled_from(ENCODINGS))))
    owner = data.draw(st.sampled_from([header, header["shapes"]]))
    owner[data.draw(st.sampled_from(sorted(owner)))] = data.draw(_ANYTHING)

    assert_refused_or_exact(write(header, buffers))


@given(
    records.step_targets(),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_payload_with_some_bytes_replaced_is_refused_or_read_exactly(record, changes):
    payload = bytearray(codec.encode_targets(record))
    for index, byte in changes:
        payload[index % len(payload)] = byte

    assert_refused_or_exact(bytes(payload))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_single_bit_is_checked_or_is_data(encoding):
    # Flips in values are for the checksum of the layer above.
    record = records.example(encoding)
    payload = codec.encode_targets(record)

    for index in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[index // 8] ^= 1 << index % 8
        assert_refused_or_exact(bytes(flipped))


@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_truncation_is_refused(encoding, length):
    payload = codec.encode_targets(records.example(encoding, length=length))

    for size in range(len(payload)):
        with pytest.raises(codec.PayloadError):
            codec.decode_targets(payload[:size])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_after_the_last_buffer_are_refused(encoding):
    payload = codec.encode_targets(records.example(encoding))

    for num_bytes in range(1, 18):
        assert_refused(payload + bytes(num_bytes), "buffers end at")


def test_padding_that_is_not_zero_is_refused():
    header, buffers = plain(records.example())
    start = _PREFIX_BYTES + len(msgpack.packb(header))
    assert start % 8, "choose an example whose header needs padding"
    payload = bytearray(write(header, buffers))
    payload[start] = 1

    assert_refused(bytes(payload), "not zero")


@pytest.mark.parametrize("length", [16 * 1024 + 1, 2**31 - 1, 2**32 - 1])
def test_a_header_longer_than_headers_are_is_refused(length):
    assert_refused(b"dLT1" + struct.pack("<I", length) + bytes(20_000), "does not fit")


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None, [1], "x" * 10_000])
def test_another_version_is_refused_and_named(version):
    header, buffers = plain(records.example())

    assert_refused(write(header | {"version": version}, buffers), "version")


def test_the_magic_of_another_format_is_refused_and_named():
    payload = codec.encode_targets(records.example())

    assert_refused(b"dLT2" + payload[4:], "b'dLT2'")


@pytest.mark.parametrize("header", [None, True, 1, "version", b"", [], ["version", 1], {}])
def test_a_header_that_is_not_a_map_of_a_version_is_refused(header):
    assert_refused(write(header if header != b"" else b"\xc4\x00", []))


FIELDS = sorted(plain(records.example())[0])


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_without_one_of_its_fields_is_refused(field):
    header, buffers = plain(records.example())
    del header[field]

    assert_refused(write(header, buffers), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in FIELDS
        for value in (None, True, 3, 0.5, "3", b"3", [3], {"3": 3}, msgpack.ExtType(5, b"3"))
        if type(value) is not type(plain(records.example())[0][field])
    ],
)
def test_a_field_of_another_type_is_refused(field, value):
    header, buffers = plain(records.example())

    assert_refused(write(header | {field: value}, buffers))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_id", 2**63),
        ("sequence_id", 2**64 - 1),
        ("step", -1),
        ("step", 2**31),
        ("num_forwards", -1),
        ("num_forwards", 2**63),
        ("time", float("nan")),
        ("time", float("inf")),
        ("time", -0.001),
        ("time", 1.001),
        ("state_digest", b""),
        ("state_digest", bytes(15)),
        ("state_digest", bytes(16)),
        ("encoding", "sampled"),
        ("encoding", "hidden"),
        ("encoding", "x" * 10_000),
        ("value_dtype", "f64"),
        ("value_dtype", "f32"),
        ("value_dtype", "x" * 10_000),
        ("revision", "x" * 16_385),
        ("shapes", {}),
    ],
)
def test_a_field_out_of_its_range_is_refused(field, value):
    header, buffers = plain(records.example())

    assert_refused(write(header | {field: value}, buffers))


def test_fields_twice_unknown_or_written_otherwise_are_refused():
    header, buffers = plain(records.example())
    packed = msgpack.packb(header)
    step = msgpack.packb("step") + b"\x03"
    time = msgpack.packb("time") + msgpack.packb(0.625)
    assert packed[0] == 0x80 | len(header)
    twice = bytes([packed[0] + 1]) + packed[1:] + step

    assert_refused(write(header | {"note": ""}, buffers), "header is not as")
    assert_refused(write(twice, buffers), "header is not as")
    assert_refused(write(dict(reversed(header.items())), buffers), "header is not as")
    assert_refused(
        write(packed.replace(step, step[:-1] + b"\xcd\0\3"), buffers), "header is not as"
    )
    float32 = msgpack.packb("time") + b"\xca" + struct.pack(">f", 0.625)
    assert_refused(write(packed.replace(time, float32), buffers), "header is not as")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "shape",
    [
        [2**31 - 1],
        [2**31 - 1, 2**31 - 1],
        [2**31],
        [2**63, 2],
        [2**64 - 1],
        [2**32, 2**32],
        [0, 2**31 - 1],
        [2**31 - 1, 0],
        [-1],
        [-1, -2],
        [True],
        [True, True],
        [2.0],
        ["2"],
        [None],
        [[2]],
        [[2, 3], 3],
        [],
        [2, 3, 1],
        2,
        "23",
        b"\2\3",
        None,
        {},
        {"2": 3},
    ],
)
def test_a_shape_that_lies_is_refused(encoding, shape):
    header, buffers = plain(records.example(encoding))

    for name in header["shapes"]:
        shapes = header["shapes"] | {name: shape}
        assert_refused(write(header | {"shapes": shapes}, buffers))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_payload_without_one_of_its_buffers_is_refused(encoding):
    header, buffers = plain(records.example(encoding))

    for index, name in enumerate(header["shapes"]):
        shapes = {other: shape for other, shape in header["shapes"].items() if other != name}
        left = [buffer for other, buffer in enumerate(buffers) if other != index]
        # A score has neither state nor unmask steps; with a state, steps may be left out.
        if name != "unmask_steps":
            assert_refused(write(header | {"shapes": shapes}, left))


@pytest.mark.parametrize("name", ["scores", "", "values\0", "row_offsets", b"values"])
def test_a_buffer_that_the_encoding_does_not_have_is_refused(name):
    header, buffers = plain(records.example("hidden"))
    shapes = header["shapes"] | {name: [1]}

    assert_refused(write(header | {"shapes": shapes}, [*buffers, bytes(4)]), "not expected")


def test_buffers_in_another_order_are_refused():
    header, buffers = plain(records.example("hidden"))
    shapes = dict(reversed(header["shapes"].items()))

    assert_refused(write(header | {"shapes": shapes}, buffers[::-1]), "header is not as")


BOMBS: dict[str, bytes] = {
    "empty": b"",
    "reserved byte": b"\xc1",
    "not utf-8": b"\x81\xa7version\xa2\xff\xfe",
    "key that is a number": b"\x81\x01\x01",
    "key that is a list": b"\x81\x91\x01\x01",
    "key that is an ext": b"\x81\xd4\x05\x00\x01",
    "two objects": b"\x80\x80",
    "nested lists": b"\x91" * 16_000 + b"\xc0",
    "nested lists within msgpack's depth": b"\x91" * 500 + b"\xc0",
    "nested maps": b"\x81\xa1a" * 5_000 + b"\xc0",
    "nested lists that claim to be long": b"\xdc\x3e\x00" * 500 + b"\xc0" * 14_500,
    "nested maps that claim to be long": b"\xde\x3e\x00\xa1a" * 500 + b"\xc0" * 13_500,
    "list of empty maps": b"\xdc\x3f\x00" + b"\x80" * 0x3F00,
    "map of empty lists": b"\xde\x0f\x00"
    + b"".join(b"\xa2%02x\x90" % (i % 256) for i in range(3840)),
    "list that claims 2**32 - 1 items": b"\xdd\xff\xff\xff\xff",
    "map that claims 2**32 - 1 items": b"\xdf\xff\xff\xff\xff",
    "string that claims 2**32 - 1 bytes": b"\xdb\xff\xff\xff\xff",
    "bytes that claim 2**32 - 1 bytes": b"\xc6\xff\xff\xff\xff",
    "ext that claims 2**32 - 1 bytes": b"\xc9\xff\xff\xff\xff\x05",
    "ext of 16 KiB": b"\xc8\x3f\x00\x05" + bytes(0x3F00),
    "timestamp of 4 bytes": b"\xd6\xff" + b"\xff" * 4,
    "timestamp of 8 bytes": b"\xd7\xff" + b"\xff" * 8,
    "timestamp of 12 bytes": b"\xc7\x0c\xff" + b"\xff" * 12,
    "timestamp of no bytes": b"\xc7\x00\xff",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_that_is_a_bomb_is_refused(bomb):
    header, buffers = plain(records.example())
    packed = msgpack.packb(header)
    as_field = bytes([packed[0] + 1]) + packed[1:] + msgpack.packb("note") + BOMBS[bomb]
    as_shape = msgpack.packb(header | {"shapes": 0})[:-1] + b"\x81\xa6values" + BOMBS[bomb]

    assert_refused(write(BOMBS[bomb], buffers))
    assert_refused(write(as_field[: 16 * 1024], buffers))
    assert_refused(write(as_shape[: 16 * 1024], buffers))


def test_nested_shapes_are_refused_where_little_of_the_stack_is_left():
    header, buffers = plain(records.example("hidden"))
    shape: list = []
    for _ in range(400):
        shape = [shape]
    payload = write(header | {"shapes": header["shapes"] | {"values": shape}}, buffers)

    def deeper(num_frames: int) -> None:
        if num_frames:
            deeper(num_frames - 1)
        else:
            assert_refused(payload, "not expected")

    deeper(sys.getrecursionlimit() // 2)


# --- records that contradict themselves -------------------------------------------------------


def spoiled(**changes: Any) -> codec.StepTargets:
    return replace(records.example(), **changes)


def spoiled_top_k(**changes: Any) -> codec.StepTargets:
    """The example (rows [0, 1, 2] and [1, 2, 3], temperatures 1 and 2) with other arrays."""
    distribution = records.example().distribution
    assert isinstance(distribution, codec.TopK)
    return spoiled(distribution=replace(distribution, **changes))


_LOW, _HIGH = -(2**31), 2**31 - 1
_IDS = int32([10, 11, 12, 13, 14, 15])

CONTRADICTIONS: dict[str, tuple[codec.StepTargets, str]] = {
    "position twice": (spoiled(positions=int32([4, 4])), "positions"),
    "positions descending": (spoiled(positions=int32([4, 1])), "positions"),
    "position negative": (spoiled(positions=int32([-1, 4])), "positions"),
    "position past the state": (spoiled(positions=int32([1, 6])), "past a state"),
    "positions whose difference wraps": (spoiled(positions=int32([_HIGH, _LOW])), "positions"),
    "more positions than rows": (spoiled(positions=int32([1, 2, 3])), "row_offsets"),
    "fewer positions than rows": (spoiled(positions=int32([])), "row_offsets"),
    "state of other ids": (spoiled(state=_IDS + 1), "state_digest"),
    "state cut": (spoiled(state=_IDS[:5], unmask_steps=None), "state_digest"),
    "state with a negative id": (
        spoiled(state=-_IDS, state_digest=codec.state_digest(-_IDS)),
        "negative",
    ),
    "unmask steps without a state": (spoiled(state=None), "unmask_steps"),
    "unmask steps too few": (spoiled(unmask_steps=int32([-1] * 5)), "unmask_steps"),
    "unmask step below -1": (spoiled(unmask_steps=int32([-1] * 5 + [-2])), "unmask_steps"),
    "unmask step not passed yet": (spoiled(unmask_steps=int32([-1] * 5 + [3])), "unmask_steps"),
    "rows not from 0": (spoiled_top_k(row_offsets=int32([1, 3, 6])), "row_offsets"),
    "rows not to the end": (spoiled_top_k(row_offsets=int32([0, 3, 5])), "row_offsets"),
    "rows past the end": (spoiled_top_k(row_offsets=int32([0, 3, 7])), "row_offsets"),
    "row of negative length": (spoiled_top_k(row_offsets=int32([0, 7, 6])), "row_offsets"),
    "row offset negative": (spoiled_top_k(row_offsets=int32([0, -1, 6])), "row_offsets"),
    "rows too few": (spoiled_top_k(row_offsets=int32([0, 6])), "row_offsets"),
    "rows too many": (spoiled_top_k(row_offsets=int32([0, 3, 6, 6])), "row_offsets"),
    "no row offsets": (spoiled_top_k(row_offsets=int32([])), "row_offsets"),
    "log-probs too few": (spoiled_top_k(log_probs=records.values("f16", (5,))), "log_probs"),
    "id negative": (spoiled_top_k(token_ids=int32([-1, 1, 2, 1, 2, 3])), "token_ids"),
    "id twice in a row": (spoiled_top_k(token_ids=int32([0, 1, 1, 1, 2, 3])), "token_ids"),
    "ids descending in a row": (spoiled_top_k(token_ids=int32([0, 1, 2, 1, 3, 2])), "token_ids"),
    "normalisers of another shape": (
        spoiled_top_k(log_normalizers=np.zeros((2, 1), dtype=np.float32)),
        "log_normalizers",
    ),
    "tails of another shape": (
        spoiled_top_k(tail_log_masses=np.zeros((1, 2), dtype=np.float32)),
        "tail_log_masses",
    ),
    "temperatures fewer than normalisers": (
        spoiled_top_k(temperatures=np.ones(1, dtype=np.float32)),
        "log_normalizers",
    ),
} | {
    f"temperature {temperature}": (
        spoiled_top_k(temperatures=np.array([1, temperature], dtype=np.float32)),
        "temperatures",
    )
    for temperature in (0.0, -0.0, -1.0, np.inf, -np.inf, np.nan)
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused(name):
    record, match = CONTRADICTIONS[name]

    assert_refused(codec.encode_targets(record), match)


def test_row_offsets_whose_differences_wrap_are_refused():
    # In int32 each offset minus the one before it is positive.
    offsets = int32([0, _HIGH, _LOW, -1, 6])
    assert np.all(np.diff(offsets) > 0)
    record = spoiled_top_k(
        row_offsets=offsets,
        log_normalizers=np.zeros((2, 4), dtype=np.float32),
        tail_log_masses=np.zeros((2, 4), dtype=np.float32),
    )

    assert_refused(codec.encode_targets(replace(record, positions=int32(range(4)))), "row_offsets")


@pytest.mark.parametrize("encoding", ["hidden", "logits"])
@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_values_for_other_than_the_positions_are_refused(encoding, num_rows):
    kind = codec.Hidden if encoding == "hidden" else codec.Logits
    record = spoiled(distribution=kind(values=records.values("f32", (num_rows, 3))))

    assert_refused(codec.encode_targets(record), "rows of values for 2 positions")
