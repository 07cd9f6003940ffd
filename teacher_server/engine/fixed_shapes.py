"""Forwards whose shapes never depend on load, so that a row's numbers do not either.

A kernel sums in an order that its shapes choose. Here a row has the numbers of itself alone, padded
to the length of its bucket. It shares a forward with rows of its bucket only in numbers of rows
that were tested: there every row had, bit for bit, what it has alone.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from masked_diffusion.families import Denoiser

logger = logging.getLogger(__name__)

MIN_LENGTH = 32
MAX_TOKENS = 512
"""Of a forward of several rows. On a CPU larger ones were slower: they leave its cache."""


class Shape(NamedTuple):
    """Of the forwards that a row takes part in, but for the number of rows."""

    length: int
    is_full: bool
    """Every row has the length, so there is no attention mask, which chooses another kernel."""


class SizedRow(Protocol):
    """What is looked at in a row."""

    @property
    def forwards_per_step(self) -> int: ...


RowT = TypeVar("RowT", bound=SizedRow)


def shape_of(length: int, *, max_length: int) -> Shape:
    """The shape for a row: its bucket is a quarter of a power of two apart from the next.

    Args:
        max_length: Of the model; no bucket is longer.
    """
    bucket = MIN_LENGTH
    while bucket < length:
        bucket += _step(bucket)
    bucket = min(bucket, max(max_length, length))
    return Shape(length=bucket, is_full=length == bucket)


def _step(bucket: int) -> int:
    return 2 ** (bucket.bit_length() - 1) // 4


def fitting(rows: Iterable[RowT], *, max_rows: int) -> list[RowT]:
    """The first rows that a forward has room for, one with guidance counted twice; one at least."""
    taken: list[RowT] = []
    num_left = max_rows
    for row in rows:
        num_left -= row.forwards_per_step
        if taken and num_left < 0:
            break
        taken.append(row)
    return taken


class FixedShapes:
    """Runs rows of a denoiser in their shapes; one thread's at a time."""

    def __init__(self, denoiser: Denoiser, *, max_tokens: int) -> None:
        """Makes one that runs rows one at a time until `prove`.

        Args:
            max_tokens: Of a forward; a longer row runs alone.
        """
        self._denoiser = denoiser
        self._max_length = denoiser.info.max_length
        self._max_tokens = min(max_tokens, MAX_TOKENS)
        self._sizes: dict[Shape, list[int]] = {}
        """Numbers of rows, ascending from 1, that a forward of a shape may have."""

    def shape_of(self, length: int) -> Shape:
        """Of a row."""
        return shape_of(length, max_length=self._max_length)

    def num_at_once(self, shape: Shape, num_rows: int) -> int:
        """How many of so many rows the next forward takes."""
        return max(size for size in self._sizes.get(shape, [1]) if size <= num_rows)

    @torch.inference_mode()
    def prove(self, *, seconds: float) -> None:
        """Tests which shapes take several rows, short ones first; logs what came of it.

        Which ones were tested changes the speed and no number: a replica with less time agrees.

        Args:
            seconds: No test begins after so long; shapes that are left run rows one at a time.
        """
        end_s = time.monotonic() + seconds
        dependent, num_late = [], 0
        for shape in self._shapes():
            rows, alone = list[tuple[Tensor, float]](), list[Tensor]()
            self._sizes[shape] = sizes = [1]
            while 2 * sizes[-1] * shape.length <= self._max_tokens:
                if time.monotonic() > end_s:
                    num_late += 1
                    break
                size = 2 * sizes[-1]
                rows += random_rows(self._denoiser, shape, size - len(rows), seed=size)
                alone += [
                    hidden for row in rows[len(alone) :] for hidden in self._run(shape, [row])
                ]
                # The order is another one at every size, so a row is at other places too.
                together = self._run(shape, rows[::-1])
                if not all(map(torch.equal, together, alone[::-1])):
                    dependent.append(shape)
                    break
                sizes.append(size)
        if dependent:
            logger.warning("row_dependent shapes=%s: they run fewer rows at a time", dependent)
        logger.info(
            "fixed_shapes num=%d num_not_tested=%d seconds=%.1f",
            len(self._sizes),
            num_late,
            time.monotonic() - end_s + seconds,
        )

    def _shapes(self) -> list[Shape]:
        """Those that could take two rows."""
        longest = min(self._max_tokens // 2, self._max_length)
        lengths = sorted({self.shape_of(length).length for length in range(1, longest + 1)})
        return [
            Shape(length, is_full)
            for length in lengths
            for is_full in (True, False)
            if 2 * length <= self._max_tokens
        ]

    def hidden_states(self, rows: Sequence[Tensor], *, times: Sequence[float]) -> list[Tensor]:
        """As `ModelRunner.hidden_states`, in as many forwards as the shapes take."""
        by_shape: dict[Shape, list[int]] = {}
        for index, row in enumerate(rows):
            by_shape.setdefault(self.shape_of(len(row)), []).append(index)
        hidden: dict[int, Tensor] = {}
        for shape, indices in by_shape.items():
            start = 0
            while start < len(indices):
                part = indices[start : start + self.num_at_once(shape, len(indices) - start)]
                parts = self._run(shape, [(rows[index], times[index]) for index in part])
                hidden.update(zip(part, parts, strict=True))
                start += len(part)
        return [hidden[index] for index in range(len(rows))]

    def _run(self, shape: Shape, rows: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
        """One forward of rows and their times; [L_b, D] of each."""
        device = self._denoiser.device
        x_BL = torch.stack([pad(row, (0, shape.length - len(row))) for row, _ in rows])
        mask_BL = None
        if not shape.is_full:
            lengths_B = torch.tensor([len(row) for row, _ in rows])
            mask_BL = (torch.arange(shape.length) < lengths_B[:, None]).to(device)
        hidden_BLD = self._denoiser.hidden_states(
            x_BL.to(device),
            mask_BL,
            times_B=torch.tensor([t for _, t in rows], dtype=torch.float32, device=device),
        )
        return [hidden_LD[: len(row)] for (row, _), hidden_LD in zip(rows, hidden_BLD, strict=True)]


def random_rows(
    denoiser: Denoiser, shape: Shape, num_rows: int, *, seed: int
) -> list[tuple[Tensor, float]]:
    """Rows of a shape, [L_b] int64 each, and their times."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [shape.length] * num_rows
    if not shape.is_full:
        lengths = torch.randint(1, shape.length, (num_rows,), generator=generator).tolist()
    vocab_size = denoiser.info.vocab_size
    return [
        (torch.randint(vocab_size, (length,), generator=generator), t)
        for length, t in zip(
            lengths, torch.rand(num_rows, generator=generator).tolist(), strict=True
        )
    ]
