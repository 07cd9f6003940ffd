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
_FAILURE_PREFIX = "teacher-server: "
_NUM_TAIL_LINES = 5
_STOP_TIMEOUT_S = 40.0


class TeacherStartError(RuntimeError):
    """The server ended before it was ready; the message tells its own last words."""


class TeacherEndedError(RuntimeError):
    """The server ended during the run; the message tells its own last words."""


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
            # It shares a machine with the trainer: one process less that holds torch.
            "--engine-in-process",
            *extra_arguments,
        ]
        self._log_path = log_path
        self._log_start = 0
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
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
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

    def check_alive(self) -> None:
        """Raises TeacherEndedError once the server has ended; nobody starts it again."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise TeacherEndedError(
                f"the run's own teacher-server ended with code {code}: {self._last_words()} "
                f"(whole log: {self._log_path})"
            )

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
        raise TeacherStartError(
            f"teacher-server ended with code {code} after {time.monotonic() - started_s:.0f} s "
            f"before it was ready: {self._last_words()} (whole log: {self._log_path})"
        )

    def _last_words(self) -> str:
        """Why it ended, in its own one line where it wrote one."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith(_FAILURE_PREFIX)]
        return (
            said[-1].removeprefix(_FAILURE_PREFIX) if said else " | ".join(lines[-_NUM_TAIL_LINES:])
        )

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


def _environment() -> dict[str, str]:
    """Ours without what torchrun set for its ranks: the server is none of them."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return kept | channel.MALLOC_ENVIRONMENT
