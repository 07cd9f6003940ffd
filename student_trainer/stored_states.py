"""States that were stored for the sequences of a data set, drawn in the order of a run."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from masked_diffusion.randomness import keyed_uniforms
from student_trainer.config import DistillConfig, TrainConfig
from student_trainer.losses import UNKNOWN_LABEL
from student_trainer.states import BatchReader, MicroStep, StateBatch, pad_states
from student_trainer.store.errors import CorruptStoreError, StoreError
from student_trainer.store.reader import UnitPlace
from student_trainer.store.records import StoredRecord, Unit
from student_trainer.store.target_store import TargetStore
from student_trainer.stored_plan import dataset_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredStates:
    """The stored states of the sequences that a micro-step takes.

    Epoch e takes a sequence's unit e modulo their number; of a trajectory it takes
    `states_per_trajectory` states, drawn evenly, or all.
    """

    reader: BatchReader
    config: TrainConfig
    distill: DistillConfig
    store: TargetStore

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """Batches of at most micro_batch_size rows, one row per stored state."""
        clean, sequence_ids = self.reader.read(micro_step)
        places = self.reader.places(micro_step)
        indices = self.reader.plan.sequence_indices(micro_step.step)[places]
        rows: list[tuple[int, StoredRecord]] = []
        for row, (index, sequence_id) in enumerate(zip(indices, sequence_ids, strict=True)):
            rows += [(row, record) for record in self._records(index, sequence_id)]
        if not rows:
            raise StoreError(
                f"all records for step {micro_step.step} of the store {self.store.reader.url} are "
                "corrupt; precompute them again"
            )
        size = self.reader.micro_batch_size
        return [
            self._batch(rows[first : first + size], clean.input_ids_BL)
            for first in range(0, len(rows), size)
        ]

    def _records(self, index: int, sequence_id: int) -> Iterator[StoredRecord]:
        units = self.store.reader.find_example(dataset_key(self.reader.dataset, index))
        units = [unit for unit in units if len(unit.shard.records_of(unit.number))]
        epoch = sequence_id // self.reader.plan.dataset_size
        unit = units[epoch % len(units)]
        for number in self._drawn(unit, sequence_id):
            try:
                record = unit.shard.record(number)
            except CorruptStoreError as error:
                if not self.distill.stored_logits_skip_corrupt:
                    raise
                logger.warning("skipped sequence=%d error=%s", index, error)
                continue
            self.store.count(Unit(key=b"", records=(record,)))
            yield record

    def _drawn(self, unit: UnitPlace, sequence_id: int) -> Sequence[int]:
        """Numbers of the records that are taken."""
        numbers = unit.shard.records_of(unit.number)
        wanted = self.distill.states_per_trajectory
        if not 0 < wanted < len(numbers):
            return numbers
        uniforms = keyed_uniforms(
            seed=self.config.seed,
            sequence_id=sequence_id,
            step=0,
            length=wanted,
            stream="collect",
        )
        strata = (np.arange(wanted) + uniforms) / wanted * len(numbers)
        return sorted({numbers[int(place)] for place in strata})

    def _batch(
        self, rows: Sequence[tuple[int, StoredRecord]], input_ids_BL: torch.Tensor
    ) -> StateBatch:
        records = [record.targets for _, record in rows]
        xt_BL, lengths_B = pad_states(records)
        loss_BL = torch.zeros(xt_BL.shape, dtype=torch.bool)
        labels = []
        is_noised = self.store.identity.plan.get("state_source") == "noised"
        origin_B = [row for row, _ in rows]
        for place, (row, record) in enumerate(zip(origin_B, records, strict=True)):
            positions_M = torch.from_numpy(record.positions.astype(np.int64))
            loss_BL[place, positions_M] = True
            labels.append(input_ids_BL[row, positions_M])
            if not is_noised and self.reader.info.noise == "uniform":
                # As in TrajectoryStates: the tokens around may be the teacher's.
                labels[-1] = torch.full_like(labels[-1], UNKNOWN_LABEL)
        return StateBatch(
            xt_BL=xt_BL,
            lengths_B=lengths_B,
            loss_BL=loss_BL,
            labels_M=torch.cat(labels),
            t_B=torch.tensor([record.t for _, record in rows], dtype=torch.float32),
            num_maskable_B=torch.tensor([record.num_maskable for _, record in rows]),
            targets=self.store.to_loss_targets(records),
            clean_BL=input_ids_BL[origin_B, : xt_BL.shape[1]] if is_noised else None,
        )
