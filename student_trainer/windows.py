"""Windows: the data in pieces of so many rows, read, tokenized and shuffled as a whole.

A window is a function of the data, the seed, and where it begins, so any process can make it, and a
run that goes on needs to know nothing but where it was.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from student_trainer.chunks import Chunking, Chunks, cut
from student_trainer.documents import documents_of
from student_trainer.row_keys import RowKeys
from student_trainer.rows import Row, RowFile


@dataclass(frozen=True, kw_only=True)
class WindowStart:
    """Where a window begins."""

    epoch: int = 0
    window: int = 0
    """Counted within its epoch."""
    file: int = 0
    """Place of its first file in the order of the epoch."""
    row: int = 0
    """First row of that file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """What one process sends another; `failure` instead of an exception, whose text would grow."""

    start: WindowStart
    chunks: Chunks
    failure: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """The data, and how it is divided."""

    files: Sequence[RowFile]
    keys: RowKeys
    tokenizer: PreTrainedTokenizerBase
    chunking: Chunking
    num_rows: int
    """Rows of a window; the last one of an epoch may have fewer."""
    seed: int | None
    """Keys the order of the files in each epoch and of the chunks in each window, and epochs follow
    each other without end. None = one epoch, in order."""

    def windows(
        self, start: WindowStart, *, worker: int = 0, num_workers: int = 1
    ) -> Iterator[Window]:
        """Every window from one on, of which a worker makes every num_workers-th.

        The last one has a `failure` where the data cannot be read.
        """
        try:
            for number, (begin, rows) in enumerate(self._divided(start)):
                if number % num_workers == worker:
                    yield self._make(begin, rows)
        except (ValueError, OSError) as error:
            yield Window(start=start, chunks=Chunks(), failure=str(error))

    def _divided(self, start: WindowStart) -> Iterator[tuple[WindowStart, list[Row]]]:
        for epoch in itertools.count(start.epoch):
            first = start if epoch == start.epoch else WindowStart(epoch=epoch)
            yield from self._epoch(first)
            if self.seed is None:
                return

    def _epoch(self, start: WindowStart) -> Iterator[tuple[WindowStart, list[Row]]]:
        """Divides what is left of an epoch; at least one window, which may be empty."""
        begin, rows = start, list[Row]()
        for place, number, row in self._rows(start):
            if len(rows) == self.num_rows:
                yield begin, rows
                begin = WindowStart(
                    epoch=start.epoch, window=begin.window + 1, file=place, row=number
                )
                rows = []
            rows.append(row)
        yield begin, rows

    def _rows(self, start: WindowStart) -> Iterator[tuple[int, int, Row]]:
        order = np.arange(len(self.files))
        if self.seed is not None:
            order = _generator(self.seed, start.epoch).permutation(order)
        for place in range(start.file, len(self.files)):
            first = start.row if place == start.file else 0
            rows = self.files[int(order[place])].rows(first)
            for number, row in enumerate(rows, start=first):
                yield place, number, row

    def _make(self, start: WindowStart, rows: list[Row]) -> Window:
        chunks = cut(documents_of(rows, self.keys), self.tokenizer, chunking=self.chunking)
        if self.seed is not None:
            generator = _generator(self.seed, start.epoch, start.window)
            order = generator.permutation(len(chunks.pieces)).tolist()
            chunks.pieces = [chunks.pieces[index] for index in order]
            chunks.prompt_lengths = [chunks.prompt_lengths[index] for index in order]
        return Window(start=start, chunks=chunks)


def _generator(seed: int, *key: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=key)
    return np.random.Generator(np.random.Philox(sequence))
