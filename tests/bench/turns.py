"""Pieces of work that take turns, each in a fork of its own: time and extra memory of each turn."""

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.bench.peak_memory import memory_bytes

_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one piece of work."""

    cpu_s: float
    """What it takes on a core of its own, however many others want the core."""
    extra_bytes: int
    """Peak of the resident memory over what was resident before."""
    value: float
    """What the work returned."""


def take_turns(
    works: Mapping[str, Callable[[], float]], *, num_rounds: int
) -> dict[str, list[Turn]]:
    """Runs every work once a round, one at a time, so that all meet the same changes of speed.

    Forks, so nothing may have started a thread yet; what is held already is shared and not counted.
    """
    context = multiprocessing.get_context("fork")
    forks = {}
    for name, work in works.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_turns, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()
        forks[name] = (process, ours)
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for _ in range(num_rounds):
        for name, (_, connection) in forks.items():
            connection.send(True)
            try:
                turns[name].append(connection.recv())
            except EOFError as error:
                raise RuntimeError(f"the work {name} failed; see above") from error
    for process, connection in forks.values():
        # Told, since a closed end is still open in the forks made after it.
        connection.send(False)
        process.join(_STOP_TIMEOUT_S)
    return turns


def measure(work: Callable[[], float]) -> Turn:
    """Runs the work once, in this process."""
    # What earlier turns freed is given back, else it would hide what this one needs.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present
    before_bytes = memory_bytes("VmRSS")
    started_s = time.process_time()
    value = work()
    cpu_s = time.process_time() - started_s
    return Turn(cpu_s, memory_bytes("VmHWM") - before_bytes, value)


def _run_turns(work: Callable[[], float], connection: Connection) -> None:
    while connection.recv():
        connection.send(measure(work))
