"""The trainers that are timed against each other.

`student_only` trains on the data alone; `remote_*` distils with targets that a server without a
model sends at once; `memory_*` distils with the very same targets already in memory, so that it
costs what the loss's arithmetic costs and nothing of the network.
"""

import dataclasses
from dataclasses import dataclass

import torch

from masked_diffusion.families import Denoiser
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.losses import Targets, TeacherHead
from student_trainer.states import MicroStep, NoisedStates, StateBatch
from student_trainer.targets import RemoteTeacher, to_loss_targets
from tests.bench.instant_targets import InstantTargets
from tests.bench.interleaved import Run
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

    def arms(self) -> dict[str, Run]:
        """Every arm by its name."""
        arms = {"student_only": self._student_only()}
        for encoding in ENCODINGS:
            arms[f"remote_{encoding}"] = self._remote(encoding)
            arms[f"memory_{encoding}"] = self._memory(encoding)
        return arms

    def _student_only(self) -> Run:
        denoiser = self.workload.new_student()
        source = self._noised(denoiser, teacher=None)
        config = self._config(DistillConfig(distillation_alpha=0.0))
        return Run(config=config, denoiser=denoiser, reader=source.reader, source=source)

    def _remote(self, encoding: wire.Encoding) -> Run:
        denoiser = self.workload.new_student()
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
        denoiser = self.workload.new_student()
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
        reader = self.workload.reader(denoiser.info, num_steps=self.num_steps)
        return NoisedStates(reader=reader, config=config.train, teacher=teacher)
