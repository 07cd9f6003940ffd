"""A ring of bytes in memory that two processes share; one writes, the other reads, in order.

The memory is anonymous (memfd): nothing is left behind when a process is killed. Who reads tells
the writer over another channel which bytes it has copied out.
"""

import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np


def create(num_bytes: int) -> int:
    """A file descriptor of fresh shared memory, to be given to the other process."""
    fd = os.memfd_create("teacher-ring")
    os.truncate(fd, num_bytes)
    return fd


class RingWriter:
    """The writing end. One thread writes; `acknowledge` and `close` may come from another."""

    def __init__(self, fd: int) -> None:
        self._bytes = _map(fd)
        self._head = 0
        self._num_free = len(self._bytes)
        self._changed = threading.Condition()
        self._closed = False

    def write(self, data: bytes) -> Iterator[int]:
        """Copies the data in, a piece at a time, as room comes; gives the length of each piece.

        A piece is there for the reader once its length was given, and never wraps around.

        Raises:
            BrokenPipeError: closed: nobody reads any more.
        """
        source = np.frombuffer(data, dtype=np.uint8)
        start = 0
        while start < len(source):
            num_bytes = min(self._wait_for_room(), len(source) - start)
            self._bytes[self._head : self._head + num_bytes] = source[start : start + num_bytes]
            self._head = (self._head + num_bytes) % len(self._bytes)
            with self._changed:
                self._num_free -= num_bytes
            start += num_bytes
            yield num_bytes

    def acknowledge(self, num_bytes: int) -> None:
        """Tells that the reader has copied these bytes out."""
        with self._changed:
            self._num_free += num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Ends a `write` that waits for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for_room(self) -> int:
        """Bytes that can be written in one piece; waits until there are some."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_free or self._closed)
            if self._closed:
                raise BrokenPipeError("the ring's reader is gone")
            return min(self._num_free, len(self._bytes) - self._head)


class RingReader:
    """The reading end. One thread's."""

    def __init__(self, fd: int) -> None:
        self._bytes = _map(fd)
        self._tail = 0

    def read(self, num_bytes: int) -> bytes:
        """Copies the next piece out; the writer may then be told."""
        piece = self._bytes[self._tail : self._tail + num_bytes].tobytes()
        self._tail = (self._tail + num_bytes) % len(self._bytes)
        return piece


def _map(fd: int) -> np.ndarray:
    """[capacity] uint8 over the shared memory; the descriptor may be closed afterwards."""
    return np.frombuffer(mmap.mmap(fd, os.fstat(fd).st_size), dtype=np.uint8)
