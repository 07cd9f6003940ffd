"""Several real trainers on one core at the same time, each a process whose steps are timed.

The system hands the core round every few milliseconds, so that all of them run under the same
conditions: the speed of a core of a shared machine drifts by a tenth within a second, which spoils
the ratio of steps that merely follow each other. A step's time is therefore counted in CPU time,
plus the time that it stood waiting for targets: what it takes on a core of its own.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from masked_diffusion.families import Denoiser
from student_trainer.config import Config
from student_trainer.interrupt import StopRequest
from student_trainer.metrics import MetricsLog, StepMetrics
from student_trainer.parallel import Parallel
from student_trainer.prefetch import Prefetcher
from student_trainer.states import SequenceReader, StateSource
from student_trainer.targets import TargetCounters
from student_trainer.trainer import Trainer
from tests.bench.workload import Schedule

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a trainer is made of."""

    config: Config
    denoiser: Denoiser
    reader: SequenceReader
    source: StateSource
    counters: Callable[[], TargetCounters] = TargetCounters
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of one trainer."""

    cpu_s: float
    """Of the whole process, gRPC's and the prefetcher's threads included."""
    wait_s: float
    """Time without the states and targets of the step."""
    kd: float

    @property
    def time_s(self) -> float:
        """On a core of its own."""
        return self.cpu_s + self.wait_s


class _EnoughError(Exception):
    """Ends a trainer before its steps are over."""


class _TimingLog(MetricsLog):
    """The trainer's own log, which also takes the time."""

    def __init__(self, path: Path, schedule: Schedule) -> None:
        super().__init__(
            path, num_steps=schedule.num_steps, first_step=0, log_every_n_steps=schedule.num_steps
        )
        self._schedule = schedule
        self._started_s = time.monotonic()
        self._cpu_s = time.process_time()
        self.steps: list[Step] = []

    def add(self, metrics: StepMetrics) -> None:
        super().add(metrics)
        cpu_s = time.process_time()
        self.steps.append(Step(cpu_s - self._cpu_s, metrics.teacher_wait_s, metrics.kd))
        self._cpu_s = cpu_s
        is_enough = len(self.steps) >= self._schedule.num_warmup + self._schedule.min_steps
        if is_enough and time.monotonic() - self._started_s > self._schedule.budget_s:
            raise _EnoughError


def time_side_by_side(
    makers: Mapping[str, Callable[[], Run]], schedule: Schedule, *, parallel: Parallel
) -> dict[str, list[Step]]:
    """Trains all runs at once; the counted steps of each, the same number of all.

    Forks, so nothing may have started a thread yet.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(makers))
    children = []
    for name, make in makers.items():
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(
            target=_child, args=(name, make, schedule, parallel, barrier, sender), daemon=True
        )
        child.start()
        sender.close()
        children.append((name, child, receiver))
    steps = {}
    for name, child, receiver in children:
        try:
            steps[name] = receiver.recv()[schedule.num_warmup :]
        except EOFError as error:
            raise RuntimeError(f"the trainer {name} failed; see above") from error
        child.join(_STOP_TIMEOUT_S)
    num_steps = min(map(len, steps.values()))
    return {name: taken[:num_steps] for name, taken in steps.items()}


def _child(  # noqa: PLR0917 - as multiprocessing passes them
    name: str,
    make: Callable[[], Run],
    schedule: Schedule,
    parallel: Parallel,
    barrier: Barrier,
    sender: Connection,
) -> None:
    run = make()
    trainer = Trainer(run.config, run.denoiser, parallel, num_steps=schedule.num_steps)
    prefetcher = Prefetcher(
        run.reader.micro_steps(0, schedule.num_steps),
        run.source.states,
        window=run.config.distill.prefetch_window,
        on_close=run.close,
    )
    # Nobody begins before all are there to share the core.
    barrier.wait(_START_TIMEOUT_S)
    log = _TimingLog(Path(run.config.train.output_dir) / f"{name}.jsonl", schedule)
    try:
        with log, prefetcher:
            trainer.train(
                iter(prefetcher),
                num_micro_steps=run.reader.num_micro_steps,
                counters=run.counters,
                log=log,
                request=StopRequest(),
            )
    except _EnoughError:
        pass
    sender.send(log.steps)
