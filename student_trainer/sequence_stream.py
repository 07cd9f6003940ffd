"""The data as one endless, numbered stream of sequences, of which a rank keeps its share.

Every rank reads all of it. That is what makes a batch independent of the number of ranks: how many
sequences a document gives is known only when it is tokenized, and with it the number of the next.
"""

import threading
from collections.abc import Callable, Generator
from dataclasses import astuple

import numpy as np
import torch
from torch import Tensor

from student_trainer.windows import Window, WindowStart

OpenWindows = Callable[[WindowStart], Generator[Window]]
"""Gives every window from one on, without end."""

POSITION_SIZE = 6


class SequenceStream:
    """Sequences by number, each to be taken once and about in order; safe for many threads.

    Nothing is held but the sequences of this rank that were read and not taken yet.
    """

    def __init__(self, open_windows: OpenWindows, *, is_own: Callable[[int], bool]) -> None:
        """Reads nothing before the first sequence or position is asked for.

        Args:
            is_own: tells whether this rank will take the sequence of a number.
        """
        self._open_windows = open_windows
        self._is_own = is_own
        self._lock = threading.Lock()
        self._windows: Generator[Window] | None = None
        self._start = WindowStart()
        self._first_number = 0
        self._num_read = 0
        self._own: dict[int, tuple[np.ndarray, int]] = {}
        # A few numbers for each window, until a later position is asked for.
        self._starts: list[tuple[int, WindowStart]] = []
        self._empty_epoch: int | None = None
        self._failure: Exception | None = None

    def take(self, number: int) -> tuple[np.ndarray, int]:
        """The ids of a sequence, [length] int32, and its prompt's length.

        Raises:
            ValueError: the data cannot be read, or a whole epoch of it gives no sequence.
        """
        with self._lock:
            self._read_to(number)
            return self._own.pop(number)

    def position(self, number: int) -> Tensor:
        """[6] int64: where a stream must begin to go on with this number; all 0 at the beginning.

        Positions are asked for in rising order, and none of a number taken long ago.
        """
        with self._lock:
            if number == 0:
                return torch.zeros(POSITION_SIZE, dtype=torch.int64)
            self._read_to(number)
            while len(self._starts) > 1 and self._starts[1][0] <= number:
                self._starts.pop(0)
            window_number, start = self._starts[0]
            return torch.tensor([*astuple(start), window_number, number])

    def go_to(self, position: Tensor) -> None:
        """Begins at the position of another stream; only before anything was read."""
        assert self._windows is None, "go_to comes before the first take"
        epoch, window, file, row, self._num_read, self._first_number = position.tolist()
        self._start = WindowStart(epoch=epoch, window=window, file=file, row=row)

    def close(self) -> None:
        """Stops the workers."""
        with self._lock:
            if self._windows is not None:
                self._windows.close()

    def _read_to(self, number: int) -> None:
        if self._windows is None:
            self._windows = self._open_windows(self._start)
        while number >= self._num_read:
            if self._failure is not None:
                # The windows ended with it, and every thread that reads on is to know why.
                raise self._failure
            try:
                self._add(next(self._windows))
            except Exception as error:
                self._failure = error
                raise

    def _add(self, window: Window) -> None:
        self._starts.append((self._num_read, window.start))
        self._check_not_barren(window)
        chunks = window.chunks
        for piece, prompt_length in zip(chunks.pieces, chunks.prompt_lengths, strict=True):
            if self._num_read >= self._first_number and self._is_own(self._num_read):
                self._own[self._num_read] = piece, prompt_length
            self._num_read += 1

    def _check_not_barren(self, window: Window) -> None:
        """A stream of nothing would be read for ever."""
        epoch = window.start.epoch
        if window.chunks.pieces:
            self._empty_epoch = None
        elif self._empty_epoch is None:
            self._empty_epoch = epoch
        elif epoch >= self._empty_epoch + 2:
            raise ValueError(
                "a whole pass over data.train_path gives no sequence: there are no rows, or all of "
                "them have fewer than data.min_chunk_tokens tokens or an empty answer"
            )
