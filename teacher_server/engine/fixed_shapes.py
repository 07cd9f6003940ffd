"""Forwards whose shapes never depend on load, so that a row's numbers do not either.

A kernel sums in an order that its shapes choose. Here a row always runs in the same shape: as many
rows and as many columns as its own length asks for, the rest filled up. What is left to show is
that a row's place and its neighbours do not matter, which `is_row_independent` does.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from masked_diffusion.families import Denoiser

logger = logging.getLogger(__name__)

MIN_LENGTH = 32
MAX_TOKENS = 2048
"""Of a forward: larger ones gain little, and all that no row needs is computed in vain."""


class Shape(NamedTuple):
    """Of the forwards that a row takes part in."""

    num_rows: int
    length: int
    is_full: bool
    """Every row has the length, so there is no attention mask, which chooses another kernel."""


class SizedRow(Protocol):
    """What is looked at in a row."""

    @property
    def length(self) -> int: ...

    @property
    def forwards_per_step(self) -> int: ...


RowT = TypeVar("RowT", bound=SizedRow)


def shape_of(length: int, *, max_length: int, max_tokens: int) -> Shape:
    """The shape for a row: a power of two or 1.5 of one, at most the model's maximum.

    Args:
        max_tokens: Of a forward; a longer row runs alone.
    """
    bucket, step = MIN_LENGTH, MIN_LENGTH // 2
    while bucket < length:
        bucket += step
        if bucket & (bucket - 1) == 0:
            step = bucket // 2
    bucket = min(bucket, max(max_length, length))
    num_rows = max(1, min(max_tokens, MAX_TOKENS) // bucket)
    return Shape(num_rows=num_rows, length=bucket, is_full=length == bucket)


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
    """Runs rows of a denoiser in their shapes; one thread's."""

    def __init__(self, denoiser: Denoiser, *, max_tokens: int) -> None:
        self._denoiser = denoiser
        self._max_tokens = max_tokens
        self._num_rows: dict[Shape, int] = {}
        """By shape, once it was tested: rows of a forward, 1 where neighbours mattered."""

    def shape_of(self, length: int) -> Shape:
        """Of a row."""
        return shape_of(
            length, max_length=self._denoiser.info.max_length, max_tokens=self._max_tokens
        )

    def hidden_states(self, rows: Sequence[Tensor], *, times: Sequence[float]) -> list[Tensor]:
        """As `ModelRunner.hidden_states`, in as many forwards as the shapes take."""
        by_shape: dict[Shape, list[int]] = {}
        for index, row in enumerate(rows):
            by_shape.setdefault(self.shape_of(len(row)), []).append(index)
        hidden: dict[int, Tensor] = {}
        for shape, indices in by_shape.items():
            tested = shape._replace(num_rows=self._rows_at_once(shape))
            for start in range(0, len(indices), tested.num_rows):
                part = indices[start : start + tested.num_rows]
                parts = _run(
                    self._denoiser,
                    tested,
                    [rows[index] for index in part],
                    times=[times[index] for index in part],
                )
                hidden.update(zip(part, parts, strict=True))
        return [hidden[index] for index in range(len(rows))]

    def _rows_at_once(self, shape: Shape) -> int:
        if shape not in self._num_rows:
            is_independent = is_row_independent(self._denoiser, shape)
            if not is_independent:
                logger.warning(
                    "row_dependent rows=%d length=%d full=%s: such rows run one at a time",
                    *shape,
                )
            self._num_rows[shape] = shape.num_rows if is_independent else 1
        return self._num_rows[shape]


@torch.inference_mode()
def is_row_independent(denoiser: Denoiser, shape: Shape) -> bool:
    """Runs rows twice, in other places and among others; True where every bit is the same."""
    if shape.num_rows == 1:
        return True
    generator = torch.Generator().manual_seed(0)

    def some_rows(num_rows: int) -> list[Tensor]:
        lengths = [shape.length] * num_rows
        if not shape.is_full:
            lengths = torch.randint(1, shape.length, (num_rows,), generator=generator).tolist()
        return [
            torch.randint(denoiser.info.vocab_size, (length,), generator=generator)
            for length in lengths
        ]

    rows, times = some_rows(shape.num_rows), torch.rand(shape.num_rows, generator=generator)
    before = _run(denoiser, shape, rows, times=times.tolist())
    # One place on, the second half among others; then the first half alone.
    kept = (shape.num_rows + 1) // 2
    others = some_rows(shape.num_rows - kept)
    mixed = _run(
        denoiser,
        shape,
        [*others, *rows[:kept]],
        times=[*[0.5] * len(others), *times[:kept].tolist()],
    )[len(others) :]
    alone = _run(denoiser, shape, rows[1:2], times=times[1:2].tolist())
    return all(map(torch.equal, before, mixed)) and torch.equal(before[1], alone[0])


def _run(
    denoiser: Denoiser, shape: Shape, rows: Sequence[Tensor], *, times: Sequence[float]
) -> list[Tensor]:
    """One forward of exactly the shape; [L_b, D] of each row."""
    device = denoiser.head_weight.device
    num_missing = shape.num_rows - len(rows)
    x_BL = torch.stack([pad(row, (0, shape.length - len(row))) for row in rows])
    # Rows that nobody asked for: any valid id serves, and something must be attended to.
    x_BL = pad(x_BL, (0, 0, 0, num_missing))
    lengths_B = torch.tensor([len(row) for row in rows] + [1] * num_missing)
    mask_BL = None
    if not shape.is_full:
        mask_BL = (torch.arange(shape.length) < lengths_B[:, None]).to(device)
    hidden_BLD = denoiser.hidden_states(
        x_BL.to(device),
        mask_BL,
        times_B=torch.tensor([*times, *[1.0] * num_missing], dtype=torch.float32, device=device),
    )
    return [hidden_LD[: len(row)] for row, hidden_LD in zip(rows, hidden_BLD, strict=False)]
