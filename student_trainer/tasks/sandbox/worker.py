"""The process that runs a program and tells how it ended."""

import json
import os
from typing import NoReturn

from student_trainer.tasks.sandbox import rights
from student_trainer.tasks.sandbox.limits import SandboxLimits

MAX_DETAIL_CHARS = 500


def run_program(program: str, *, limits: SandboxLimits, nonce: str, report_w: int) -> NoReturn:
    """Runs a program to its end under limits, reports and exits.

    Only this process's own report counts as passed: an exit code of 0 says nothing, for a program
    may leave before its tests have begun.

    Args:
        program: Python source; it passes if it ends without an exception.
        limits: Of this process and all it starts.
        nonce: Makes the report one that a program does not write by accident.
        report_w: Where to write it, a JSON object.
    """
    rights.keep_only(report_w)
    rights.limit_resources(limits)
    report = {"nonce": nonce, "passed": False}
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        report["detail"] = describe(error)
    else:
        if _has_children():
            report["detail"] = "left processes behind"
        else:
            report["passed"] = True
    os.write(report_w, json.dumps(report).encode())
    os._exit(0)


def describe(error: BaseException) -> str:
    """Names an exception, whatever its own code does when asked."""
    try:
        text = f": {error}"
    except BaseException:
        text = ""
    return f"{type(error).__name__}{text if text != ': ' else ''}"[:MAX_DETAIL_CHARS]


def _has_children() -> bool:
    """Tells whether anything that the program started still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
