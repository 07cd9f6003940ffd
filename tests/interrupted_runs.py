"""Training runs as processes that get a signal at a given step."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

_POLL_S = 0.005
_TIMEOUT_S = 240.0


def start(command: Sequence[str], *, num_ranks: int = 1) -> subprocess.Popen[str]:
    """A run without torchrun, or with it for several ranks."""
    launcher = [sys.executable]
    if num_ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(num_ranks)]
    return subprocess.Popen(
        [*launcher, "-m", "student_trainer.train", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Waits for the end; the exit code. Raises RuntimeError where it is 1."""
    output, _ = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode > 0:
        raise RuntimeError(f"the run ended with code {process.returncode}:\n{output}")
    return process.returncode


def interrupt(
    process: subprocess.Popen[str], metrics: Path, *, after_step: int, number: signal.Signals
) -> int:
    """Sends a signal to all its processes as soon as so many steps are logged; the exit code."""
    try:
        wait_for_step(metrics, step=after_step, is_running=lambda: process.poll() is None)
    except RuntimeError as error:
        process.kill()
        raise RuntimeError(f"{error}: {process.communicate()[0]}") from error
    # The launcher first, which would otherwise stop ranks in its own way.
    for one in [psutil.Process(process.pid), *ranks(process)]:
        one.send_signal(number)
    return finish(process)


def wait_for_step(metrics: Path, *, step: int, is_running: Callable[[], bool]) -> None:
    """Returns as soon as so many steps are logged; raises RuntimeError where the run ends first."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while num_lines(metrics) < step:
        if not is_running() or time.monotonic() > deadline_s:
            raise RuntimeError(f"step {step} was not reached")
        time.sleep(_POLL_S)  # a file tells nobody that it grew


def ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that torchrun started, in rank order; none without it."""
    found = {
        int(child.environ()["RANK"]): child
        for child in psutil.Process(process.pid).children()
        if "RANK" in child.environ()
    }
    return [found[rank] for rank in sorted(found)]


def num_lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def random_step(num_steps: int, *, seed: int) -> int:
    """A step that is neither the first nor among the last."""
    return random.Random(seed).randint(2, num_steps // 2)
