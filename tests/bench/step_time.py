"""Times of a trainer's step with and without a teacher.

`python -m tests.bench.step_time JSON`, with a workload and a schedule, reads the address of the
server without a model from its standard input and writes JSON to its standard output.
"""

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass

import torch

from student_trainer.parallel import Parallel
from tests.bench import cores
from tests.bench.arms import ENCODINGS, ArmMaker
from tests.bench.side_by_side import Step, time_side_by_side
from tests.bench.workload import Schedule, Workload


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Steps of every arm; those of one index had the same states."""

    is_pinned: bool
    """Whether the trainers were on a core of their own, away from the server."""
    arms: dict[str, list[Step]]


def measure(workload: Workload, schedule: Schedule, *, address: str) -> StepTimes:
    """Runs every arm, each in a fork of this process."""
    is_pinned = cores.pin(min)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        maker = ArmMaker(
            workload=workload,
            address=address,
            output_dir=folder,
            num_steps=schedule.num_steps,
        )
        parallel = Parallel(device=torch.device("cpu"))
        arms = time_side_by_side(maker.arms(), schedule, parallel=parallel)
    for encoding in ENCODINGS:
        # Else the two arms would not differ in the network alone.
        remote, memory = arms[f"remote_{encoding}"], arms[f"memory_{encoding}"]
        assert [step.kd for step in remote] == [step.kd for step in memory]
    return StepTimes(is_pinned=is_pinned, arms=arms)


def main() -> None:
    """Measures as the argument says."""
    fields = json.loads(sys.argv[1])
    workload, schedule = Workload(**fields["workload"]), Schedule(**fields["schedule"])
    address = sys.stdin.readline().strip()
    with contextlib.redirect_stdout(sys.stderr):
        times = measure(workload, schedule, address=address)
    json.dump(
        {
            "is_pinned": times.is_pinned,
            "step_s": {name: [step.time_s for step in arm] for name, arm in times.arms.items()},
            "wait_s": {name: [step.wait_s for step in arm] for name, arm in times.arms.items()},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
