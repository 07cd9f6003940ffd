"""The states a student is trained on, with their labels and targets: made on prefetch threads."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import DenoiserInfo
from masked_diffusion.families.info import Noise
from masked_diffusion.randomness import keyed_uniforms
from protos import codec
from student_trainer import losses
from student_trainer.batches import BatchPlan, SequenceBatch, collate, rank_slice
from student_trainer.config import DistillConfig, TrainConfig
from student_trainer.data import TokenizedDataset
from student_trainer.noising import Noising, maskable
from student_trainer.targets import TargetSource


@dataclass(frozen=True, kw_only=True, eq=False)
class StateBatch:
    """States for one student forward; everything about positions is in row-major order."""

    xt_BL: Tensor
    """[B, L] int64, right padded."""
    lengths_B: Tensor
    """[B] int64."""
    loss_BL: Tensor
    """[B, L] bool: positions with a loss, M in all."""
    labels_M: Tensor
    """[M] int64 true tokens, UNKNOWN_LABEL where unknown."""
    t_B: Tensor
    """[B] float32 time of each row: the probability that a token is masked, or noise."""
    num_maskable_B: Tensor
    """[B] int64 positions that could have been masked."""
    targets: losses.Targets | None
    """The teacher's, at the same M positions; None without a teacher."""
    clean_BL: Tensor | None = None
    """[B, L] int64, the states without noise: what a block-causal student sees of the blocks
    before a position's own. None where they are not known to be this state's: a trajectory's,
    whose earlier blocks hold no mask, are the state itself."""
    sequence_ids: tuple[int, ...] = ()
    """Of the rows, where each is a sample of its own; they name a row in requests and errors."""

    @property
    def num_masked(self) -> int:
        """M."""
        return len(self.labels_M)


@dataclass(frozen=True, slots=True)
class MicroStep:
    """One rank's share of one accumulation step."""

    step: int
    """Optimizer step."""
    index: int
    """Accumulation step."""


class StateSource(Protocol):
    """Makes the student's states of one micro-step; pure but for asking the teacher."""

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """One or more batches of at most micro_batch_size rows.

        A batch may have no position with a loss, but there is always one: a rank without a
        backward would leave the others waiting for its gradients.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceReader:
    """Which clean sequences a micro-step takes."""

    micro_batch_size: int
    rank: int
    world_size: int
    info: DenoiserInfo

    @property
    def global_batch_size(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, int | str]:
        """What decides the sequences of a step beside its number; alike on all ranks."""
        raise NotImplementedError

    def read(self, micro_step: MicroStep) -> tuple[SequenceBatch, list[int]]:
        """The clean sequences and their sample numbers, which key every draw."""
        raise NotImplementedError

    @property
    def num_micro_steps(self) -> int:
        """Accumulation steps of one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def pad_token_id(self) -> int:
        """What stands behind the shorter sequences."""
        pad = self.info.pad_token_id
        return self.info.mask_token_id if pad is None else pad

    def micro_steps(self, first_step: int, num_steps: int) -> Iterator[MicroStep]:
        """All micro-steps of this rank, in order."""
        for step in range(first_step, num_steps):
            for index in range(self.num_micro_steps):
                yield MicroStep(step, index)

    def places(self, micro_step: MicroStep) -> slice:
        """Where the micro-step's sequences stand in the global batch of its optimizer step."""
        share = rank_slice(self.global_batch_size, rank=self.rank, world_size=self.world_size)
        first = share.start + micro_step.index * self.micro_batch_size
        return slice(first, first + self.micro_batch_size)

    def maskable(self, batch: SequenceBatch) -> Tensor:
        """[B, L] bool: neither prompt, padding, special token nor a position without prediction."""
        return maskable(batch, self.info)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchReader(SequenceReader):
    """Reads a data set of known size: the sequences are a function of the step alone."""

    dataset: TokenizedDataset
    plan: BatchPlan

    @property
    def global_batch_size(self) -> int:
        return self.plan.global_batch_size

    @property
    def facts(self) -> dict[str, int | str]:
        return {
            "data_mode": "mapped",
            "global_batch_size": self.plan.global_batch_size,
            "seed": self.plan.seed,
            "num_sequences": self.plan.dataset_size,
            "num_data_tokens": len(self.dataset.token_ids),
            "data_digest": self.dataset.digest,
        }

    def read(self, micro_step: MicroStep) -> tuple[SequenceBatch, list[int]]:
        """See `SequenceReader.read`."""
        places = self.places(micro_step)
        indices = self.plan.sequence_indices(micro_step.step)[places]
        batch = collate(self.dataset, indices, pad_token_id=self.pad_token_id)
        return batch, self.plan.sequence_ids(micro_step.step)[places]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedStates:
    """Data made noisy at a random time; the teacher, if any, scores exactly these states."""

    reader: SequenceReader
    config: TrainConfig
    teacher: TargetSource | None

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """One batch."""
        batch, sequence_ids = self.reader.read(micro_step)
        noising = Noising(
            info=self.reader.info,
            global_batch_size=self.reader.global_batch_size,
            seed=self.config.seed,
            t_min=self.config.t_min,
            t_max=self.config.t_max,
        )
        states = noised_states(noising, batch, sequence_ids)
        return [states if self.teacher is None else with_targets(states, self.teacher)]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryStates:
    """States that the teacher passes when it fills in the data from a prompt.

    The labels are the data's tokens: the truth at every position that is still masked, although
    the tokens around it may be the teacher's. With uniform noise the token at the position itself
    may be the teacher's, so there are no labels.
    """

    reader: SequenceReader
    config: TrainConfig
    distill: DistillConfig
    teacher: TargetSource

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """Batches of at most micro_batch_size rows, one row per collected state."""
        batch, sequence_ids = self.reader.read(micro_step)
        maskable_BL = self.reader.maskable(batch)
        start_BL = self._generated(maskable_BL)
        xt_BL = batch.input_ids_BL.masked_fill(start_BL, self.reader.info.mask_token_id)
        starts = unpad(xt_BL, batch.lengths_B)
        ask = functools.partial(
            self.teacher.sample,
            starts,
            frozen=unpad(~start_BL, batch.lengths_B),
            sequence_ids=sequence_ids,
            seed=self.config.seed,
        )
        # Every trajectory may be over before the steps that were drawn; the first is not, unless
        # there is nothing to generate.
        records = (
            ask(steps=self.collected_steps(micro_step))
            or ask(steps=[0])
            or self.teacher.score(
                starts,
                sequence_ids=sequence_ids,
                times=[1.0] * len(starts),
                positions=chosen_positions(start_BL, self.reader.info.noise),
            )
        )
        rows = {sequence_id: row for row, sequence_id in enumerate(sequence_ids)}
        size = self.reader.micro_batch_size
        return [
            self._batch(records[first : first + size], rows, batch, start_BL)
            for first in range(0, len(records), size)
        ]

    def collected_steps(self, micro_step: MicroStep) -> list[int]:
        """Steps whose targets are asked for: all that the configuration collects, or a draw.

        The draw is stratified and keyed by the micro-step, so that steps come evenly.
        """
        distill = self.distill
        steps = list(range(0, distill.num_sampling_steps, distill.collect_every_n_steps))
        wanted = distill.states_per_trajectory
        if not 0 < wanted < len(steps):
            return steps
        uniforms = keyed_uniforms(
            seed=self.config.seed,
            sequence_id=self.reader.places(micro_step).start,
            step=micro_step.step,
            length=wanted,
            stream="collect",
        )
        strata = (np.arange(wanted) + uniforms) / wanted * len(steps)
        return sorted({steps[int(place)] for place in strata})

    def _generated(self, maskable_BL: Tensor) -> Tensor:
        """[B, L] bool: maskable positions after the leading share that is given."""
        counts_B1 = maskable_BL.sum(-1, keepdim=True)
        given_B1 = (counts_B1 * self.distill.prompt_fraction).long()
        return maskable_BL & (maskable_BL.cumsum(-1) > given_B1)

    def _batch(
        self,
        records: Sequence[codec.StepTargets],
        rows: dict[int, int],
        batch: SequenceBatch,
        start_BL: Tensor,
    ) -> StateBatch:
        xt_BL, lengths_B = pad_states(records)
        loss_BL = torch.zeros(xt_BL.shape, dtype=torch.bool)
        labels = []
        for index, record in enumerate(records):
            positions_M = torch.from_numpy(record.positions.astype(np.int64))
            loss_BL[index, positions_M] = True
            labels.append(batch.input_ids_BL[rows[record.sequence_id], positions_M])
            if self.reader.info.noise == "uniform":
                labels[-1] = torch.full_like(labels[-1], losses.UNKNOWN_LABEL)
        origin = torch.tensor([rows[record.sequence_id] for record in records])
        return StateBatch(
            xt_BL=xt_BL,
            lengths_B=lengths_B,
            loss_BL=loss_BL,
            labels_M=torch.cat(labels),
            t_B=torch.tensor([record.time for record in records]),
            num_maskable_B=start_BL[origin].sum(-1),
            targets=self.teacher.to_loss_targets(records),
        )


def noised_states(
    noising: Noising, batch: SequenceBatch, sequence_ids: Sequence[int]
) -> StateBatch:
    """One state of each sequence, without targets."""
    maskable_BL = maskable(batch, noising.info)
    noised = noising.noise(batch, sequence_ids, maskable_BL=maskable_BL)
    return StateBatch(
        xt_BL=noised.xt_BL,
        lengths_B=batch.lengths_B,
        loss_BL=noised.loss_BL,
        labels_M=batch.input_ids_BL[noised.loss_BL],
        t_B=noised.t_B,
        num_maskable_B=maskable_BL.sum(-1),
        targets=None,
        clean_BL=batch.input_ids_BL,
        sequence_ids=tuple(sequence_ids),
    )


def with_targets(states: StateBatch, teacher: TargetSource) -> StateBatch:
    """The same states with what the teacher says at exactly the positions with a loss.

    May be called by several threads at once.

    Raises:
        ValueError: The teacher has another idea of which positions are masked.
        TeacherError: A teacher across the network does not answer.
    """
    records = teacher.score(
        unpad(states.xt_BL, states.lengths_B),
        sequence_ids=states.sequence_ids or range(len(states.lengths_B)),
        clean=None if states.clean_BL is None else unpad(states.clean_BL, states.lengths_B),
        times=states.t_B.tolist(),
        positions=chosen_positions(states.loss_BL, teacher.description.noise),
    )
    check_positions(records, states.loss_BL)
    return dataclasses.replace(states, targets=teacher.to_loss_targets(records))


def unpad(rows_BL: Tensor, lengths_B: Tensor) -> list[np.ndarray]:
    """Rows without their padding, each its own array."""
    return [
        row[:length].numpy().copy() for row, length in zip(rows_BL, lengths_B.tolist(), strict=True)
    ]


def pad_states(records: Sequence[codec.StepTargets]) -> tuple[Tensor, Tensor]:
    """The states of records as [B, L] int64, right padded with 0, and their lengths."""
    states = []
    for record in records:
        assert record.state is not None
        states.append(torch.from_numpy(record.state.astype(np.int64)))
    lengths_B = torch.tensor([len(state) for state in states])
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True), lengths_B


def chosen_positions(loss_BL: Tensor, noise: Noise) -> list[np.ndarray] | None:
    """Positions that a teacher must be told, since states do not show them; None with masks."""
    if noise == "absorbing":
        return None
    return [np.flatnonzero(loss_L.numpy()).astype(np.int32) for loss_L in loss_BL]


def check_positions(records: Sequence[codec.StepTargets], loss_BL: Tensor) -> None:
    """Refuses targets that are not at exactly the positions with a loss of their rows."""
    for record, loss_L in zip(records, loss_BL, strict=True):
        if not np.array_equal(record.positions, np.flatnonzero(loss_L.numpy())):
            raise ValueError(
                f"targets of sequence {record.sequence_id} are not at its masked positions; do "
                "student and teacher share the mask id?"
            )
