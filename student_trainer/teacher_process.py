"""A teacher-server of our own on this machine, for runs that name a model and no address."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from protos import channel

_READY_PREFIX = "teacher-server listening on "
_STOP_TIMEOUT_S = 40.0


class TeacherProcess:
    """A child process that serves until the context ends; it never outlives this process."""

    def __init__(
        self,
        model: str,
        *,
        log_path: Path,
        listen: str = "127.0.0.1:0",
        extra_arguments: Sequence[str] = (),
        start_timeout_s: float = 600.0,
    ) -> None:
        self._command = [
            sys.executable,
            "-m",
            "teacher_server.server",
            f"--model={model}",
            f"--listen={listen}",
            # The pipe's other end is ours: it closes however this process ends.
            "--exit-with-stdin",
            *extra_arguments,
        ]
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> "TeacherProcess":
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | channel.MALLOC_ENVIRONMENT,
                # Ctrl-C goes to the trainer, which stops the server when it is done with it.
                start_new_session=True,
            )
        try:
            self.address = self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _wait_ready(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        timer = threading.Timer(self._start_timeout_s, self._process.kill)
        timer.start()
        started_s = time.monotonic()
        try:
            for line in self._process.stdout:
                text = line.decode().strip()
                if text.startswith(_READY_PREFIX):
                    return text.removeprefix(_READY_PREFIX)
        finally:
            timer.cancel()
        code = self._process.wait()
        raise RuntimeError(
            f"teacher-server ended with code {code} after {time.monotonic() - started_s:.0f} s "
            f"before it was ready:\n{self._log_tail()}\n(whole log: {self._log_path})"
        )

    def _log_tail(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
