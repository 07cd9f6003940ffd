"""Several real trainers in one process that take turns, one optimizer step a turn.

Whatever else the machine does slows neighbouring turns alike, so ratios within a round hold where
times of separate runs would not.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from masked_diffusion.families import Denoiser
from student_trainer.config import Config
from student_trainer.metrics import MetricsLog, StepMetrics
from student_trainer.parallel import Parallel
from student_trainer.prefetch import Prefetcher
from student_trainer.states import BatchReader, StateSource
from student_trainer.targets import TargetCounters
from student_trainer.trainer import Trainer

_TURN_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step took."""

    wall_s: float
    cpu_s: float
    """CPU time of the whole process, gRPC's and the prefetcher's threads included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a trainer is made of."""

    config: Config
    denoiser: Denoiser
    reader: BatchReader
    source: StateSource
    counters: Callable[[], TargetCounters] = TargetCounters
    close: Callable[[], None] = lambda: None


class _EnoughError(Exception):
    """Ends a trainer whose turns are over before its steps are."""


class _PausingLog(MetricsLog):
    """The trainer's own log; behind each step it waits for the next turn."""

    def __init__(self, path: Path, *, num_steps: int) -> None:
        super().__init__(path, num_steps=num_steps, first_step=0, log_every_n_steps=num_steps)
        self.go = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.is_over = False
        self.steps = list[StepMetrics]()

    def add(self, metrics: StepMetrics) -> None:
        super().add(metrics)
        self.steps.append(metrics)
        self.pause()

    def pause(self) -> None:
        self.done.release()
        self.go.acquire()
        if self.is_over:
            raise _EnoughError


class _Arm(threading.Thread):
    """One trainer on its own thread; it runs only while it is its turn."""

    def __init__(self, name: str, run: Run, *, num_steps: int, parallel: Parallel) -> None:
        super().__init__(name=name, daemon=True)
        self._run = run
        self._num_steps = num_steps
        self._parallel = parallel
        self._failure: BaseException | None = None
        folder = Path(run.config.train.output_dir) / name
        self.log = _PausingLog(folder / "metrics.jsonl", num_steps=num_steps)

    def run(self) -> None:
        run = self._run
        try:
            trainer = Trainer(run.config, run.denoiser, self._parallel, num_steps=self._num_steps)
            prefetcher = Prefetcher(
                run.reader.micro_steps(0, self._num_steps),
                run.source.states,
                window=run.config.distill.prefetch_window,
                on_close=run.close,
            )
            with self.log, prefetcher:
                self.log.pause()
                trainer.train(
                    iter(prefetcher),
                    num_micro_steps=run.reader.num_micro_steps,
                    counters=run.counters,
                    log=self.log,
                )
        except _EnoughError:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self.log.done.release()

    def wait(self) -> None:
        """Waits until the arm stands still; raises what it raised."""
        if not self.log.done.acquire(timeout=_TURN_TIMEOUT_S):
            raise TimeoutError(f"a step of {self.name} took over {_TURN_TIMEOUT_S:.0f} s")
        if self._failure is not None:
            raise self._failure

    def turn(self) -> Turn:
        """One optimizer step, the trainer's book-keeping included."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        self.log.go.release()
        self.wait()
        return Turn(time.perf_counter() - wall_s, time.process_time() - cpu_s)

    def end(self) -> None:
        """Stops the trainer where it stands."""
        self.log.is_over = True
        self.log.go.release()
        self.join(_TURN_TIMEOUT_S)


@dataclass(frozen=True, kw_only=True, eq=False)
class Interleaved:
    """Each run's turns and metrics, step by step, those of the warm-up left out."""

    turns: dict[str, list[Turn]]
    metrics: dict[str, list[StepMetrics]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How many turns each run gets."""

    num_warmup: int
    """Rounds first that are not counted."""
    num_rounds: int
    """Rounds at most."""
    budget_s: float
    """After this time no further round begins."""
    min_rounds: int = 5

    @property
    def num_steps(self) -> int:
        """Steps that a trainer may be asked for."""
        return self.num_warmup + self.num_rounds


def take_turns(runs: dict[str, Run], schedule: Schedule, *, parallel: Parallel) -> Interleaved:
    """Trains all runs side by side; who begins a round rotates."""
    arms = {
        name: _Arm(name, run, num_steps=schedule.num_steps, parallel=parallel)
        for name, run in runs.items()
    }
    for arm in arms.values():
        arm.start()
        arm.wait()
    turns: dict[str, list[Turn]] = {name: [] for name in arms}
    for order in _orders(list(arms), schedule):
        for name in order:
            turns[name].append(arms[name].turn())
    for arm in arms.values():
        arm.end()
    first = schedule.num_warmup
    return Interleaved(
        turns={name: values[first:] for name, values in turns.items()},
        metrics={name: arm.log.steps[first:] for name, arm in arms.items()},
    )


def _orders(names: Sequence[str], schedule: Schedule) -> Iterator[Sequence[str]]:
    started_s = time.monotonic()
    for index in range(schedule.num_steps):
        is_enough = index >= schedule.num_warmup + schedule.min_rounds
        if is_enough and time.monotonic() - started_s > schedule.budget_s:
            return
        first = index % len(names)
        yield [*names[first:], *names[:first]]
