"""The way back from the engine's thread to the event loop: one bounded stream per request."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from protos import errors


@dataclass(frozen=True, slots=True)
class TargetsReady:
    """Targets of one sequence at one collected step, encoded."""

    sequence_id: int
    step: int
    payload: bytes


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryDone:
    """The end of one trajectory."""

    sequence_id: int
    token_ids: bytes
    """int32 little-endian, [L]."""
    unmask_steps: bytes
    """int32 little-endian, [L]; -1 = given."""
    num_forwards: int
    num_steps: int
    num_collected_steps: int
    revision: str
    mask_token_suppressed: bool


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Nothing follows; `error` tells why when the request did not end well."""

    error: errors.TeacherError | None


StreamItem = TargetsReady | TrajectoryDone | StreamEnd


class OutputWindow:
    """Bytes of one request's targets that its reader has not taken yet; what the engine sees.

    The window is soft: the engine asks `has_room` before a row's step and may overshoot by the
    targets of one step, so nothing ever blocks the engine.
    """

    def __init__(self, *, window_bytes: int, on_room: Callable[[], None]) -> None:
        self._window_bytes = window_bytes
        self._on_room = on_room
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self.on_release: Callable[[int], None] | None = None
        """Hears of all bytes that the transport takes: an engine elsewhere counts them too."""

    @property
    def window_bytes(self) -> int:
        """Bytes from which on rows wait for the reader."""
        return self._window_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes of targets written and not yet taken by the transport."""
        return self._pending_bytes

    @property
    def has_room(self) -> bool:
        """False while the reader is behind by more than the window."""
        return self._pending_bytes < self._window_bytes

    def put(self, item: StreamItem) -> None:
        """Hands an item over; called by the engine's thread, never blocks."""
        if isinstance(item, TargetsReady):
            with self._lock:
                self._pending_bytes += len(item.payload)
        self._deliver(item)

    def release(self, num_bytes: int) -> None:
        """Tells that the transport took bytes; wakes the engine when that makes room."""
        # One lock for both sides: else a `put` in between fills the window and nobody wakes.
        with self._lock:
            had_room = self.has_room
            self._pending_bytes -= num_bytes
            makes_room = self.has_room and not had_room
        if makes_room:
            self._on_room()
        if self.on_release is not None:
            self.on_release(num_bytes)

    def _deliver(self, item: StreamItem) -> None:
        raise NotImplementedError


class OutputStream(OutputWindow):
    """Items of one request, written by the engine and read by one coroutine."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        window_bytes: int,
        on_room: Callable[[], None],
    ) -> None:
        super().__init__(window_bytes=window_bytes, on_room=on_room)
        self._loop = loop
        self._items: asyncio.Queue[StreamItem] = asyncio.Queue()

    async def get(self) -> StreamItem:
        """The next item; waits for it."""
        return await self._items.get()

    def get_ready(self) -> StreamItem | None:
        """The next item if one is there."""
        return None if self._items.empty() else self._items.get_nowait()

    def _deliver(self, item: StreamItem) -> None:
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)
