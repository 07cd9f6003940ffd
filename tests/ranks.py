"""Ranks of one group on this machine, forked from a process that has imported everything.

As torchrun starts them, but for the seconds that every one of its processes imports torch; what
torchrun does itself, such as stopping ranks, is not here.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["student_trainer.train", "tests.step_on_ranks"])
_TIMEOUT_S = 200.0
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """Running ranks, in order."""

    processes: list[BaseProcess]
    logs: list[Path]
    store: dist.TCPStore
    """Where they meet; it outlives them, as torchrun's does."""

    def wait(self, *, timeout_s: float = _TIMEOUT_S) -> list[int | None]:
        """Exit codes, -N after signal N; ranks that do not end in time are killed and have None."""
        deadline_s = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def is_running(self) -> bool:
        """Whether no rank has ended."""
        return all(process.is_alive() for process in self.processes)

    def send_signal(self, number: signal.Signals) -> None:
        """To every rank."""
        for process in self.processes:
            assert process.pid is not None
            os.kill(process.pid, number)

    def wait_for_output(self, line: str, *, num_lines: int) -> None:
        """Returns once all ranks together printed that line so many times."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while self.output().splitlines().count(line) < num_lines:
            assert time.monotonic() < deadline_s and self.is_running(), self.output()
            time.sleep(_POLL_S)  # a file tells nobody that it grew

    def output(self) -> str:
        """What all of them printed so far, rank by rank."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)


def start(
    function: Callable[..., int | None], *arguments: object, num_ranks: int | None, folder: Path
) -> Ranks:
    """Calls a function of an importable module on every rank; it returns the exit code.

    Args:
        num_ranks: None = one process that is no rank, as without torchrun.
        folder: for what the ranks print.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [folder / f"rank{rank}.log" for rank in range(num_ranks or 1)]
    processes: list[BaseProcess] = []
    for rank, log in enumerate(logs):
        log.write_bytes(b"")
        places = {} if num_ranks is None else _places(rank, num_ranks, store.port)
        process = _CONTEXT.Process(
            # No daemon: those may not have children, and a teacher is one.
            target=_run,
            args=(function, arguments, places, log),
            name=f"rank{rank}",
        )
        process.start()
        processes.append(process)
    return Ranks(processes=processes, logs=logs, store=store)


def _places(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run(
    function: Callable[..., int | None], *arguments: object, num_ranks: int, folder: Path
) -> None:
    """Calls a function on every rank and expects that all of them succeed."""
    ranks = start(function, *arguments, num_ranks=num_ranks, folder=folder)
    codes = ranks.wait()
    assert codes == [0] * num_ranks, f"{codes}\n{ranks.output()}"


def _run(
    function: Callable[..., int | None],
    arguments: tuple[object, ...],
    places: dict[str, str],
    log: Path,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.environ.update(places)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
