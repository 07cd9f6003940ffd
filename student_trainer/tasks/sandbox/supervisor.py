"""The child of the caller: makes the program's process, watches it, and kills all it started."""

import glob
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from student_trainer.tasks.sandbox import forks, private_root, rights, system_calls, worker
from student_trainer.tasks.sandbox.isolation import SandboxError
from student_trainer.tasks.sandbox.limits import SandboxLimits

MAX_REPORT_BYTES = 2**16


def main() -> None:
    """Reads one request from standard input and writes how its program ended, both JSON."""
    request = json.load(sys.stdin)
    system_calls.die_with_parent()
    system_calls.adopt_orphans()
    try:
        answer = _supervise(request)
    except SandboxError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


def _supervise(request: dict[str, Any]) -> dict[str, str]:
    limits = SandboxLimits(**request["limits"])
    scratch: str = request["scratch"]
    # Found out here: a private root shows no /proc.
    as_nobody = rights.becomes_nobody()
    report_r, report_w = os.pipe()

    def run() -> NoReturn:
        worker.run_program(
            request["program"], limits=limits, nonce=request["nonce"], report_w=report_w
        )

    def prepare_isolated() -> None:
        private_root.enter_private_root(scratch, limits)
        rights.drop_rights(as_nobody=as_nobody, reads_all_files=False)

    def prepare_limited() -> None:
        if as_nobody:
            os.chown(scratch, rights.NOBODY, rights.NOBODY)
        os.chdir(scratch)
        # The program's orphans are its own children then, and their being there is found.
        system_calls.adopt_orphans()
        rights.drop_rights(as_nobody=as_nobody, reads_all_files=True)

    if request["isolation"] == "namespaces":
        pid = forks.fork_isolated(prepare_isolated, run)
    else:
        pid = forks.fork_prepared(prepare_limited, run)
    os.close(report_w)
    try:
        report, status = _watch(pid, report_r, deadline=time.monotonic() + limits.wall_s)
    finally:
        _kill_descendants()
    return _verdict(report, status, nonce=request["nonce"], limits=limits)


def _watch(pid: int, report_r: int, *, deadline: float) -> tuple[bytes, int | None]:
    """Reads the report until the process ends: what it wrote, and its wait status.

    The status is None where it did not end in time, or wrote more than a report.
    """
    report = b""
    poll = select.poll()
    process = os.pidfd_open(pid)
    poll.register(process, select.POLLIN)
    poll.register(report_r, select.POLLIN)
    os.set_blocking(report_r, False)
    while (left_s := deadline - time.monotonic()) > 0 and len(report) <= MAX_REPORT_BYTES:
        ready = dict(poll.poll(left_s * 1000))
        if report_r in ready:
            # Others than the process may still hold the other end, so this is not read to its end.
            with suppress(BlockingIOError):
                piece = os.read(report_r, MAX_REPORT_BYTES)
                report += piece
                if not piece:
                    poll.unregister(report_r)
        elif process in ready:
            return report, os.waitpid(pid, 0)[1]
    return report, None


def _kill_descendants() -> None:
    """Kills whatever the program started and left, and waits for its end."""
    # Stopped, a process still counts against the limit, so even those that fork without end come
    # to a stop; killed one by one they would outrun this.
    stopped: set[int] = set()
    while new := _descendants(os.getpid()) - stopped:
        _signal_all(new, signal.SIGSTOP)
        stopped |= new
    while found := _descendants(os.getpid()):
        _signal_all(found, signal.SIGKILL)
        # One of them at least is a child of this process, or becomes one at its parent's end.
        os.waitpid(-1, 0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _descendants(pid: int) -> set[int]:
    """Finds all processes below one, from what the kernel lists of each thread's children."""
    found: set[int] = set()
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with suppress(FileNotFoundError, ProcessLookupError), open(path, encoding="ascii") as file:
            for child in map(int, file.read().split()):
                found |= {child} | _descendants(child)
    return found


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _verdict(
    report: bytes, status: int | None, *, nonce: str, limits: SandboxLimits
) -> dict[str, str]:
    if len(report) > MAX_REPORT_BYTES:
        return {"verdict": "failed", "detail": "wrote to a file that is not its own"}
    if status is None:
        return {"verdict": "timeout", "detail": f"not done after {limits.wall_s:g} s"}
    # The keeper of namespaces has no other way to pass a signal on than a shell's: 128 + number.
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - 128
    if number in (signal.SIGXCPU, signal.SIGKILL):
        detail = f"killed, as after {limits.cpu_s} s of processor time"
        return {"verdict": "timeout", "detail": detail}
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return {"verdict": "failed", "detail": f"killed by {name}"}
    return _said(report, nonce=nonce, code=code)


def _said(report: bytes, *, nonce: str, code: int) -> dict[str, str]:
    """What the program's process told of itself, if it was that process."""
    try:
        said = json.loads(report)
    except ValueError:
        said = {}
    if not isinstance(said, dict) or said.get("nonce") != nonce:
        return {"verdict": "failed", "detail": f"ended before its tests did, with exit code {code}"}
    if said.get("passed") is True:
        return {"verdict": "passed", "detail": ""}
    return {"verdict": "failed", "detail": str(said.get("detail", ""))}
