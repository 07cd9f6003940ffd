"""Times of a trainer's step with and without a teacher, several trainers taking turns.

`python -m tests.bench.step_time JSON`, with the fields of `StepTimeSpec`; JSON on stdout.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass

import torch

from student_trainer.parallel import Parallel
from tests.bench import cores
from tests.bench.arms import ENCODINGS, ArmMaker
from tests.bench.interleaved import Interleaved, Schedule, take_turns
from tests.bench.workload import Workload


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
        maker = ArmMaker(
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
