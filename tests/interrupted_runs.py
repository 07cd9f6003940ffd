"""Training runs as processes of their own that get a signal at a given step."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from student_trainer import train
from tests import ranks

_POLL_S = 0.005
_TIMEOUT_S = 240.0


def start(command: Sequence[str], *, folder: Path, num_ranks: int | None = None) -> ranks.Ranks:
    """A run without ranks, or with them; what it prints goes to a log in the folder."""
    return ranks.start(train.main, command, num_ranks=num_ranks, folder=folder)


def finish(running: ranks.Ranks) -> None:
    """Waits for the end, which must be a good one."""
    codes = running.wait()
    if any(codes):
        raise RuntimeError(f"the run ended with {codes}:\n{running.output()}")


def interrupt(
    running: ranks.Ranks, metrics: Path, *, after_step: int, number: signal.Signals
) -> list[int | None]:
    """Sends a signal to every rank as soon as so many steps are logged; the exit codes."""
    try:
        wait_for_step(metrics, step=after_step, is_running=running.is_running)
    except RuntimeError as error:
        codes = running.wait(timeout_s=0.0)
        raise RuntimeError(f"{error}: {codes}\n{running.output()}") from error
    running.send_signal(number)
    return running.wait()


def wait_for_step(metrics: Path, *, step: int, is_running: Callable[[], bool]) -> None:
    """Returns as soon as so many steps are logged; raises RuntimeError where the run ends first."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while num_lines(metrics) < step:
        if not is_running() or time.monotonic() > deadline_s:
            raise RuntimeError(f"step {step} was not reached")
        time.sleep(_POLL_S)  # a file tells nobody that it grew


def num_lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def random_step(num_steps: int, *, seed: int) -> int:
    """A step that is neither the first nor among the last."""
    return random.Random(seed).randint(2, num_steps // 2)
