"""Child processes of a bench: each a module of ours that takes and gives JSON."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 20.0
# One thread a process: more would measure how processes fight over cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Child:
    """`python -m MODULE JSON`, running; its standard error is kept for the message of a failure."""

    def __init__(self, module: str, argument: object) -> None:
        self._module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=os.environ | _ENVIRONMENT,
        )

    def first_line(self) -> str:
        """What it prints first, once it does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise self._failure()
        return line

    def answer(self, *, timeout_s: float) -> dict:
        """The JSON object that it ends with."""
        output, _ = self._process.communicate(timeout=timeout_s)
        if self._process.returncode != 0:
            raise self._failure()
        self._errors.close()
        answer: dict = json.loads(output)
        return answer

    def stop(self) -> None:
        """Ends it by the end of its standard input, or else kills it."""
        try:
            self._process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def _failure(self) -> RuntimeError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = b"\n".join(self._errors.read().splitlines()[-15:]).decode(errors="replace")
        return RuntimeError(f"{self._module} ended with code {code}:\n{tail}")


@contextlib.contextmanager
def serving(module: str, argument: object) -> Iterator[str]:
    """A server that prints its address first and stops when its standard input ends."""
    child = Child(module, argument)
    try:
        yield child.first_line()
    finally:
        child.stop()
