"""The samples of a run as a data set, and what makes states of them, for a torch DataLoader."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from masked_diffusion.families import DenoiserInfo
from student_trainer.batches import BatchPlan, pad_sequences
from student_trainer.data import TokenizedDataset
from student_trainer.noising import Noising
from student_trainer.states import StateBatch, noised_states


@dataclass(frozen=True, slots=True)
class Sample:
    """A clean sequence, once."""

    sequence_id: int
    """Counts over the run and keys every draw, so a sequence gets other noise in each epoch."""
    input_ids_L: np.ndarray
    """[L] integers."""
    prompt_length: int = 0
    """Leading positions that are never masked."""


class RunSamples(Dataset[Sample]):
    """Every sample of a run, in order: item i has the sequence id i.

    It is shuffled already, anew in each epoch over the data, so a loader goes through it once and
    in order, and a run goes on at any item. A training run of the same seed, data and batch size
    has the same samples.
    """

    def __init__(self, dataset: TokenizedDataset, plan: BatchPlan, *, num_steps: int) -> None:
        """Plans `num_steps` steps of plan.global_batch_size samples."""
        self._dataset = dataset
        self._plan = plan
        self._num_samples = num_steps * plan.global_batch_size

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        place = self._plan.sequence_index(index)
        prompt_length = int(self._dataset.prompt_lengths[place])
        return Sample(index, self._dataset.sequence(place), prompt_length)


class StateCollator:
    """A `collate_fn` that pads clean sequences and makes them noisy.

    It asks nobody and holds nothing but facts, so any worker process may run it; ask the teacher
    about its batches in the process that trains, with `with_targets`.
    """

    def __init__(self, info: DenoiserInfo, *, global_batch_size: int, seed: int = 0) -> None:
        """Makes the states that the trainer makes at this seed.

        Args:
            info: Of student and teacher, from `common_info`.
            global_batch_size: Sequences of an optimizer step over all ranks and micro-batches.
            seed: Keys every draw, with the sequence id.
        """
        self._noising = Noising(info=info, global_batch_size=global_batch_size, seed=seed)
        self._pad_token_id = info.mask_token_id if info.pad_token_id is None else info.pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> StateBatch:
        """The states of the samples, in order, without targets."""
        sequences = [(sample.input_ids_L, sample.prompt_length) for sample in samples]
        batch = pad_sequences(sequences, pad_token_id=self._pad_token_id)
        return noised_states(self._noising, batch, [sample.sequence_id for sample in samples])
