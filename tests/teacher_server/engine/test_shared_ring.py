import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from teacher_server.engine import shared_ring
from teacher_server.engine.shared_ring import RingReader, RingWriter

CAPACITY = 64


@pytest.fixture
def ring() -> Iterator[tuple[RingWriter, RingReader]]:
    fd = shared_ring.create(CAPACITY)
    ends = RingWriter(fd), RingReader(fd)
    os.close(fd)
    yield ends


def test_random_payloads_come_out_as_they_went_in_over_poisoned_memory(
    ring: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = ring
    generator = np.random.default_rng(0)
    for length in generator.integers(0, 3 * CAPACITY, 500).tolist():
        payload = generator.bytes(length)
        copied = b""
        for num_bytes in writer.write(payload):
            assert 0 < num_bytes <= CAPACITY
            start = reader._tail
            copied += reader.read(num_bytes)
            # Whoever reads these bytes again before they are written reads wrong ones.
            reader._bytes[start : start + num_bytes] ^= 255
            writer.acknowledge(num_bytes)
        assert copied == payload


def test_a_full_ring_overwrites_nothing_and_waits_for_the_reader(
    ring: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = ring
    payload = bytes(range(CAPACITY + 10))
    pieces: list[int] = []
    is_full = threading.Event()

    def write() -> None:
        for num_bytes in writer.write(payload):
            pieces.append(num_bytes)
            is_full.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert is_full.wait(10)
    assert reader.read(CAPACITY) == payload[:CAPACITY]
    assert pieces == [CAPACITY]
    writer.acknowledge(CAPACITY)
    thread.join(10)
    assert pieces == [CAPACITY, 10]
    assert reader.read(10) == payload[CAPACITY:]


def test_a_writer_that_waits_ends_when_the_ring_is_closed(
    ring: tuple[RingWriter, RingReader],
) -> None:
    writer, _ = ring
    pieces = writer.write(bytes(CAPACITY + 1))
    assert next(pieces) == CAPACITY
    writer.close()
    with pytest.raises(BrokenPipeError, match="reader is gone"):
        next(pieces)
