"""A real teacher server in a thread, on a free port of the loopback."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from masked_diffusion.families import Denoiser
from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.engine import Engine
from teacher_server.server import TeacherServer

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
_DEFAULTS = {"listen": "127.0.0.1:0", "drain_timeout_s": 5.0, "status_interval_s": 0.0}


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that listens."""

    address: str
    server: TeacherServer
    thread: threading.Thread
    results: list[bool]
    """Empty until it ends; then whether it ended as asked."""

    @property
    def engine(self) -> Engine:
        """What decodes behind the server."""
        assert isinstance(self.server.engine, Engine)
        return self.server.engine

    @property
    def is_alive(self) -> bool:
        """True until the server has ended, by itself or because the block did."""
        return self.thread.is_alive()

    @property
    def ended_as_asked(self) -> bool:
        """False where the engine died."""
        return self.results == [True]


@contextlib.contextmanager
def serve(denoiser: Denoiser, **overrides: object) -> Iterator[RunningServer]:
    """Serves until the block ends, then drains; no thread and no socket is left behind.

    Args:
        denoiser: What is served; shared, in evaluation mode.
        overrides: Fields of EngineConfig, LimitsConfig and ServerConfig.
    """
    sections = _sections(_DEFAULTS | overrides)
    server = TeacherServer(denoiser, **sections)  # type: ignore[arg-type]
    ready, results, failures = threading.Event(), list[bool](), list[BaseException]()

    def run() -> None:
        try:
            results.append(asyncio.run(server.serve(on_ready=ready)))
        except BaseException as error:
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="teacher-server")
    thread.start()
    try:
        assert ready.wait(START_TIMEOUT_S), "the server did not start"
        if not failures:
            yield RunningServer(
                address=f"127.0.0.1:{server.port}", server=server, thread=thread, results=results
            )
    finally:
        server.request_stop()
        thread.join(STOP_TIMEOUT_S)
        assert not thread.is_alive(), "the server did not stop"
    if failures:
        raise failures[0]


def _sections(fields: dict[str, object]) -> dict[str, object]:
    """Sorts fields into the sections that own them; an unknown field is an error."""
    left = dict(fields)
    owners = {"config": ServerConfig, "engine_config": EngineConfig, "limits": LimitsConfig}
    sections: dict[str, object] = {}
    for name, owner in owners.items():
        names = [field.name for field in dataclasses.fields(owner)]
        sections[name] = owner(**{name: left.pop(name) for name in names if name in left})
    if left:
        raise TypeError(f"no configuration has a field {', '.join(sorted(left))}")
    return sections
