"""Times of a trainer's step with and without a teacher, several trainers taking turns.

`python -m tests.bench.step_time JSON`, with the fields of `StepTimeSpec`; JSON on stdout. Arms:
`student_only` trains on the data alone; `remote_*` distils with targets that a server without a
model sends at once; `memory_*` distils with the very same targets already in memory, so that it
costs what the loss's arithmetic costs and nothing of the network.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass

import torch

from masked_diffusion.families import Denoiser
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.losses import Targets, TeacherHead
from student_trainer.parallel import Parallel
from student_trainer.states import MicroStep, NoisedStates, StateBatch
from student_trainer.targets import RemoteTeacher, to_loss_targets
from tests.bench import cores
from tests.bench.instant_targets import InstantTargets
from tests.bench.interleaved import Interleaved, Run, Schedule, take_turns
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
class _Maker:
    """Makes the arms: each its own student, all with the same weights, data and masks."""

    workload: Workload
    address: str
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


@dataclass(frozen=True, kw_only=True)
class StepTimeSpec:
    """What is measured."""

    address: str
    """Of the server without a model."""
    workload: Workload
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class ArmTimes:
    """One number a step."""

    wall_s: list[float]
    cpu_s: list[float]
    teacher_wait_s: list[float]
    kd: list[float]


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Times of every arm, step by step."""

    is_pinned: bool
    """Whether the trainer had its core to itself and the server another."""
    arms: dict[str, ArmTimes]


def measure(spec: StepTimeSpec) -> StepTimes:
    """Runs every arm in this process."""
    is_pinned = cores.pin(min)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        maker = _Maker(
            workload=spec.workload,
            address=spec.address,
            output_dir=folder,
            num_steps=spec.schedule.num_steps,
        )
        parallel = Parallel(device=torch.device("cpu"))
        interleaved = take_turns(maker.arms(), spec.schedule, parallel=parallel)
    arms = {name: _times(interleaved, name) for name in interleaved.turns}
    for encoding in ENCODINGS:
        # Else the two arms would not differ in the network alone.
        assert arms[f"remote_{encoding}"].kd == arms[f"memory_{encoding}"].kd
    return StepTimes(is_pinned=is_pinned, arms=arms)


def _times(interleaved: Interleaved, name: str) -> ArmTimes:
    turns, metrics = interleaved.turns[name], interleaved.metrics[name]
    return ArmTimes(
        wall_s=[turn.wall_s for turn in turns],
        cpu_s=[turn.cpu_s for turn in turns],
        teacher_wait_s=[step.teacher_wait_s for step in metrics],
        kd=[step.kd for step in metrics],
    )


def main() -> None:
    """Measures as the argument says."""
    fields = json.loads(sys.argv[1])
    spec = StepTimeSpec(
        address=fields["address"],
        workload=Workload(**fields["workload"]),
        schedule=Schedule(**fields["schedule"]),
    )
    with contextlib.redirect_stdout(sys.stderr):
        times = measure(spec)
    json.dump(dataclasses.asdict(times), sys.stdout)


if __name__ == "__main__":
    main()
