"""What the front asks of an engine, whether it is a thread beside it or a process of its own."""

from typing import Protocol

from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.sequence import Request


class EngineHost(Protocol):
    """An engine as the front sees it; every method may be called from any thread."""

    @property
    def process_ids(self) -> list[int]:
        """Of processes of its own, beside the front's."""

    def start(self) -> None:
        """Starts serving; raises what a first real forward raises."""

    def submit(self, request: Request) -> None:
        """Admits a request and its rows, or raises the refusal; `close` must follow."""

    def close(self, request: Request) -> None:
        """Tells that nobody reads the request's stream any more."""

    def wake(self) -> None:
        """Tells that a stream has room again."""

    def drain(self, *, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones; False when time ran out."""

    def stop(self) -> None:
        """Fails what is left and ends the engine."""

    def load(self) -> EngineLoad:
        """The load at this moment; cheap."""

    def snapshot(self) -> EngineCounters:
        """A copy of the counters."""

    def head_chunk(self, index: int) -> bytes | None:
        """A part of the head, None behind the last; blocks while it is fetched."""
