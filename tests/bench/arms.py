"""The trainers that are timed against each other.

`student_only` trains on the data alone; `remote_*` distils with targets that a server without a
model sends at once; `memory_*` distils with the very same targets already in memory, so that it
costs what the loss's arithmetic costs and nothing of the network.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, DenoiserInfo
from student_trainer import wire
from student_trainer.batches import BatchPlan
from student_trainer.client import TeacherClient
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.data import TokenizedDataset
from student_trainer.losses import Targets, TeacherHead
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch
from student_trainer.targets import RemoteTeacher, to_loss_targets
from tests.bench import models
from tests.bench.instant_targets import InstantTargets
from tests.bench.side_by_side import Run
from tests.bench.workload import Workload

ENCODINGS: tuple[wire.Encoding, ...] = ("hidden", "top_k")


@dataclass(frozen=True, kw_only=True, eq=False)
class StatesInMemory:
    """Noised states as in any run, with targets that were made before the run."""

    source: NoisedStates
    made: dict[MicroStep, Targets]

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """One batch."""
        (batch,) = self.source.states(micro_step)
        return [dataclasses.replace(batch, targets=self.made[micro_step])]


def _make_targets(
    source: NoisedStates, targets: InstantTargets, encoding: wire.Encoding, *, num_steps: int
) -> dict[MicroStep, Targets]:
    """The targets of every step, as the server would send them."""
    head = TeacherHead(torch.from_numpy(targets.head.copy()))
    made = {}
    for micro_step in source.reader.micro_steps(0, num_steps):
        (batch,) = source.states(micro_step)
        records = [
            targets.record(encoding, sequence_id=row, state_L=xt_L.numpy())
            for row, xt_L in enumerate(batch.xt_BL)
        ]
        made[micro_step] = to_loss_targets(records, head=head, temperature=1.0)
    return made


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmMaker:
    """Makes the arms: each its own student, all with the same weights, data and masks."""

    workload: Workload
    address: str
    """Of the server without a model."""
    output_dir: str
    num_steps: int

    def arms(self) -> dict[str, Callable[[], Run]]:
        """How every arm is made, by its name."""
        arms: dict[str, Callable[[], Run]] = {"student_only": self._student_only}
        for encoding in ENCODINGS:
            arms[f"remote_{encoding}"] = partial(self._remote, encoding)
            arms[f"memory_{encoding}"] = partial(self._memory, encoding)
        return arms

    def _student_only(self) -> Run:
        denoiser = self._new_student()
        source = self._noised(denoiser, teacher=None)
        config = self._config(DistillConfig(distillation_alpha=0.0))
        return Run(config=config, denoiser=denoiser, reader=source.reader, source=source)

    def _remote(self, encoding: wire.Encoding) -> Run:
        denoiser = self._new_student()
        spec = wire.TargetSpec(encoding=encoding, top_k=self.workload.top_k)
        teacher = RemoteTeacher(TeacherClient(self.address), spec=spec)
        source = self._noised(denoiser, teacher=teacher)
        return Run(
            config=self._config(self._distill(encoding)),
            denoiser=denoiser,
            reader=source.reader,
            source=source,
            counters=lambda: teacher.counters,
            close=teacher.close,
        )

    def _memory(self, encoding: wire.Encoding) -> Run:
        denoiser = self._new_student()
        noised = self._noised(denoiser, teacher=None)
        made = _make_targets(
            noised, self.workload.instant_targets(), encoding, num_steps=self.num_steps
        )
        return Run(
            config=self._config(self._distill(encoding)),
            denoiser=denoiser,
            reader=noised.reader,
            source=StatesInMemory(source=noised, made=made),
        )

    def _distill(self, encoding: wire.Encoding) -> DistillConfig:
        return DistillConfig(teacher_address=self.address, encoding=encoding)

    def _config(self, distill: DistillConfig) -> Config:
        return Config(
            data=DataConfig(train_path="none"),
            train=TrainConfig(
                output_dir=self.output_dir, micro_batch_size=self.workload.micro_batch_size
            ),
            distill=distill,
        )

    def _noised(self, denoiser: Denoiser, *, teacher: RemoteTeacher | None) -> NoisedStates:
        config = self._config(DistillConfig(distillation_alpha=0.0))
        reader = _new_reader(self.workload, denoiser.info, num_steps=self.num_steps)
        return NoisedStates(reader=reader, config=config.train, teacher=teacher)

    def _new_student(self) -> Denoiser:
        return checkpoints.new_denoiser(
            models.student_config(self.workload),
            None,
            seed=self.workload.seed,
            mask_token_id=self.workload.mask_token_id,
        )


def _new_reader(workload: Workload, info: DenoiserInfo, *, num_steps: int) -> BatchReader:
    """Random tokens, sequences of one length, every one seen once."""
    num_sequences = num_steps * workload.micro_batch_size
    ids = np.random.default_rng(workload.seed).integers(
        0, workload.mask_token_id, size=num_sequences * workload.seq_len, dtype=np.int32
    )
    dataset = TokenizedDataset(
        token_ids=ids,
        offsets=np.arange(num_sequences + 1) * workload.seq_len,
        prompt_lengths=np.zeros(num_sequences, dtype=np.int32),
        num_documents=num_sequences,
        num_dropped_chunks=0,
        num_dropped_tokens=0,
    )
    return BatchReader(
        dataset=dataset,
        plan=BatchPlan(
            dataset_size=num_sequences,
            global_batch_size=workload.micro_batch_size,
            seed=workload.seed,
        ),
        micro_batch_size=workload.micro_batch_size,
        rank=0,
        world_size=1,
        info=info,
    )
