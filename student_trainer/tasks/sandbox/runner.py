"""Runs programs in sandboxes, from the caller's side."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from student_trainer.tasks.sandbox.isolation import ISOLATIONS, Isolation, SandboxError
from student_trainer.tasks.sandbox.limits import SandboxLimits

Verdict = Literal["passed", "failed", "timeout"]

SETUP_S = 60.0
"""Seconds that starting an interpreter and clearing away may take besides, on a busy machine."""

_SOURCES = str(Path(__file__).parents[3])
"""The folder that holds our package."""

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from student_trainer.tasks.sandbox import supervisor; "
    "sys.path.remove(sys.argv[1]); supervisor.main()"
)

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # Libraries that start a thread per core would run into the limit on processes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended."""

    verdict: Verdict
    """passed: to its end, without an exception; timeout: it was killed for its time."""
    detail: str
    """Why not, where it did not pass."""


def run_sandboxed(program: str, *, limits: SandboxLimits, isolation: Isolation) -> Outcome:
    """Runs a Python program in a child process, with no input, output or environment.

    May be called from several threads at once. Whatever the program started has ended when this
    returns, and it all ends if this process does.

    This is meant for the programs of a model, which err and blunder; a program written to break
    out meets the kernel's walls with "namespaces", and hardly any with "limits". In either a
    program that reads its own interpreter's frames can claim to have passed.

    Raises:
        SandboxError: the sandbox could not be set up.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-") as scratch:
        request = {
            "program": program,
            "limits": asdict(limits),
            "isolation": isolation,
            "scratch": scratch,
            "nonce": secrets.token_hex(16),
        }
        answer = _ask_supervisor(request, timeout_s=limits.wall_s + SETUP_S)
    if "error" in answer:
        raise SandboxError(f"isolation {isolation!r} cannot be had: {answer['error']}")
    return Outcome(**answer)


def find_isolation(*, accept_weaker: bool) -> Isolation:
    """Finds the best isolation that this machine allows, by running a program in it.

    Args:
        accept_weaker: Whether anything less than namespaces will do.

    Raises:
        SandboxError: it would not; the message says what is missing and how to go on.
    """
    limits = SandboxLimits()
    try:
        _require_passed(run_sandboxed("pass", limits=limits, isolation="namespaces"))
    except SandboxError as error:
        if not accept_weaker:
            raise SandboxError(
                f"{error}. What is left is {ISOLATIONS['limits']}. Run this where unprivileged "
                "user namespaces are allowed (in a container: --security-opt seccomp=unconfined, "
                "or a virtual machine), or give --accept_weaker_isolation if that is enough here"
            ) from error
    else:
        return "namespaces"
    _require_passed(run_sandboxed("pass", limits=limits, isolation="limits"))
    return "limits"


def _require_passed(outcome: Outcome) -> None:
    if outcome.verdict != "passed":
        raise SandboxError(f"an empty program {outcome.verdict}: {outcome.detail}")


def _ask_supervisor(request: Mapping[str, object], *, timeout_s: float) -> dict[str, Any]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", _START, _SOURCES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    with process:
        try:
            output, errors = process.communicate(json.dumps(request).encode(), timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"no answer of the sandbox after {timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                # Its children die with it: each asked the kernel for that.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise SandboxError(f"the sandbox broke: {errors.decode(errors='replace')[-500:]}")
    answer: dict[str, Any] = json.loads(output)
    return answer
