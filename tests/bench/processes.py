"""Child processes of a bench: each a module of ours that takes and gives JSON."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
# One thread a process: more would measure how processes fight over cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Child:
    """`python -m MODULE JSON`, for as long as the context lasts."""

    def __init__(
        self, module: str, argument: object, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._module = module
        # Kept for the message of a failure; closed with the child.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=os.environ | _ENVIRONMENT | dict(environment or {}),
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        try:
            # A server ends with its standard input.
            self._process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def first_line(self, *, timeout_s: float = _START_TIMEOUT_S) -> str:
        """The next line that it prints, once it does."""
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline().decode().strip()
        finally:
            timer.cancel()
        if not line:
            raise self._failure()
        return line

    def tell(self, line: str) -> None:
        """Gives it one line, which it waits for when it is ready."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def answer(self, *, timeout_s: float) -> dict:
        """The JSON object that it ends with."""
        output, _ = self._process.communicate(timeout=timeout_s)
        if self._process.returncode != 0:
            raise self._failure()
        answer: dict = json.loads(output)
        return answer

    def _failure(self) -> RuntimeError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = b"\n".join(self._errors.read().splitlines()[-15:]).decode(errors="replace")
        return RuntimeError(f"{self._module} ended with code {code}:\n{tail}")
