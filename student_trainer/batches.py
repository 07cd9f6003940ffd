"""Batches: which sequences a global step takes, in what order, and how they are padded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from student_trainer.data import TokenizedDataset


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences right padded to the longest of them."""

    input_ids_BL: Tensor
    """[B, L] int64."""
    lengths_B: Tensor
    """[B] int64."""
    prompt_lengths_B: Tensor
    """[B] int64: leading positions that are never masked."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The order of the data as a function of the step alone, so a resume needs only the step.

    Samples are numbered over the whole run: step s takes samples s * global_batch_size and on.
    Each epoch is a fresh shuffle, keyed by (seed, epoch), in which every sequence comes once; a
    batch may begin in one epoch and end in the next. Every rank computes the same global list
    and takes its own `rank_slice` of it.
    """

    dataset_size: int
    global_batch_size: int
    seed: int
    _orders: dict[int, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("dataset_size", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def sequence_ids(self, step: int) -> list[int]:
        """Numbers the samples of a step; the key of their draws, so draws differ by epoch."""
        first = step * self.global_batch_size
        return list(range(first, first + self.global_batch_size))

    def sequence_indices(self, step: int) -> list[int]:
        """Returns the dataset index of each sample of a step, parallel to `sequence_ids`."""
        return [self.sequence_index(sample) for sample in self.sequence_ids(step)]

    def sequence_index(self, sample: int) -> int:
        """Returns the dataset index of one sample."""
        epoch, place = divmod(sample, self.dataset_size)
        return int(self._order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            # A batch spans few epochs and steps go forward, so the latest order is enough; a
            # dataset smaller than the batch only computes tiny ones again.
            self._orders.clear()
            key = np.random.SeedSequence(entropy=self.seed, spawn_key=(epoch,))
            generator = np.random.Generator(np.random.Philox(key))
            order = generator.permutation(self.dataset_size)
            self._orders[epoch] = order
        return order


def rank_slice(global_batch_size: int, *, rank: int, world_size: int) -> slice:
    """Returns a rank's share of the lists of a `BatchPlan`: equal, adjacent, in rank order."""
    if global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size={global_batch_size} must be a multiple of the {world_size} ranks"
        )
    size = global_batch_size // world_size
    return slice(rank * size, (rank + 1) * size)


def collate(
    dataset: TokenizedDataset, indices: Sequence[int], *, pad_token_id: int
) -> SequenceBatch:
    """Pads sequences of a data set on the right to the longest of them."""
    return pad_sequences([dataset.read(index) for index in indices], pad_token_id=pad_token_id)


def pad_sequences(
    sequences: Sequence[tuple[np.ndarray, int]], *, pad_token_id: int
) -> SequenceBatch:
    """Pads sequences, given with their prompts' lengths, on the right to the longest of them."""
    lengths_B = torch.tensor([len(ids) for ids, _ in sequences])
    input_ids_BL = torch.full((len(sequences), int(lengths_B.max())), pad_token_id)
    for row, (ids, _) in enumerate(sequences):
        input_ids_BL[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    prompt_lengths_B = torch.tensor([prompt_length for _, prompt_length in sequences])
    return SequenceBatch(input_ids_BL, lengths_B, prompt_lengths_B)
