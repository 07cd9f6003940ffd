"""Batches for ranks that must run equally many forwards, as those with sharded weights must."""

import dataclasses

from torch import Tensor

from student_trainer.parallel import Parallel
from student_trainer.states import StateBatch


def pad_batches(batches: list[StateBatch], parallel: Parallel) -> list[StateBatch]:
    """As many batches as the rank with the most has; those added have no loss."""
    count = int(parallel.maximum(len(batches)))
    return [*batches, *[without_loss(batches[-1])] * (count - len(batches))]


def without_loss(batch: StateBatch) -> StateBatch:
    """The same states with no position to learn from: a forward and backward that add nothing."""
    targets = batch.targets
    if targets is not None:
        rows = _emptied(targets, suffixes=("_M", "_MD", "_MV", "_MK"))
        targets = dataclasses.replace(targets, **rows)  # type: ignore[arg-type]
    return dataclasses.replace(
        batch,
        loss_BL=batch.loss_BL.new_zeros(batch.loss_BL.shape),
        targets=targets,
        **_emptied(batch, suffixes=("_M",)),  # type: ignore[arg-type]
    )


def _emptied(owner: object, *, suffixes: tuple[str, ...]) -> dict[str, Tensor]:
    """No row of every tensor that has one for each position with a loss."""
    names = (field.name for field in dataclasses.fields(owner))  # type: ignore[arg-type]
    return {
        name: getattr(owner, name)[:0]
        for name in names
        if name.endswith(suffixes) and getattr(owner, name) is not None
    }
