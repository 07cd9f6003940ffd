"""Several engines behind one front, one for each device, that share the rows of all requests."""

import collections
import functools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

from protos import errors
from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.remote_engine import RemoteEngine
from teacher_server.engine.sequence import Request, Row
from teacher_server.engine.stream import OutputWindow, StreamEnd, StreamItem, TargetsReady
from teacher_server.engine.twins import content_of


class EngineGroup:
    """Gives each row to the engine with the least left to do.

    Rows of equal content that are in flight at once go to the same engine, which runs one of them.
    All methods but the streams' ends are the event loop's.
    """

    def __init__(self, engines: Sequence[RemoteEngine]) -> None:
        """Takes engines that have loaded.

        Raises:
            ValueError: they loaded different weights.
        """
        revisions = {engine.facts.revision for engine in engines}
        if len(revisions) > 1:
            raise ValueError(
                f"the engines loaded different weights: {', '.join(sorted(revisions))}; the "
                "checkpoint changed meanwhile: start again"
            )
        self._engines = list(engines)
        self.facts = engines[0].facts
        self._work = [0] * len(engines)
        """Tokens of all forwards of the rows given to each, until their part of a request ends."""
        self._homes: dict[Hashable, tuple[int, int]] = {}
        """Of contents in flight: the engine, and how many rows."""
        self._parts: dict[Request, list[tuple[int, Request]]] = {}
        self._lock = threading.Lock()

    @property
    def on_dead(self) -> Callable[[BaseException], None] | None:
        """Hears of the first engine that ends by itself; the others can serve no more alone."""
        return self._engines[0].on_dead

    @on_dead.setter
    def on_dead(self, listener: Callable[[BaseException], None] | None) -> None:
        for engine in self._engines:
            engine.on_dead = listener

    @property
    def process_ids(self) -> list[int]:
        """The engines'."""
        return [engine.pid for engine in self._engines]

    def start(self) -> None:
        """Starts serving."""
        for engine in self._engines:
            engine.start()

    def submit(self, request: Request) -> None:
        """Admits a request and its rows, or raises the refusal; `close` must follow."""
        rows_of: dict[int, list[Row]] = {}
        for row in request.rows:
            rows_of.setdefault(self._place(row), []).append(row)
        merge = _Merge(request, num_parts=max(1, len(rows_of)), on_error=self.close)
        parts = [
            (index, merge.part(rows, on_end=functools.partial(self._forget, index, rows)))
            for index, rows in (rows_of or {0: []}).items()
        ]
        for submitted, (index, part) in enumerate(parts):
            try:
                self._engines[index].submit(part)
            except errors.TeacherError:
                merge.abandon()
                self._close_parts(parts[:submitted])
                for other, _ in parts[submitted:]:
                    self._forget(other, rows_of.get(other, []))
                raise
        self._parts[request] = parts
        # A part that failed before the others were known closed none of them.
        if request.error is not None:
            self._close_parts(parts)

    def close(self, request: Request) -> None:
        """Tells that nobody reads the request's stream any more; frees the rows that are left."""
        self._close_parts(self._parts.pop(request, []))

    def wake(self) -> None:
        """Nothing: the engines hear of each release."""

    def drain(self, *, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones; False when time ran out."""
        end_s = time.monotonic() + timeout_s
        with ThreadPoolExecutor(len(self._engines)) as pool:
            drained = pool.map(
                lambda engine: engine.drain(timeout_s=max(0.0, end_s - time.monotonic())),
                self._engines,
            )
            return all(list(drained))

    def stop(self) -> None:
        """Fails what is left and ends the processes."""
        with ThreadPoolExecutor(len(self._engines)) as pool:
            list(pool.map(lambda engine: engine.stop(), self._engines))

    def load(self) -> EngineLoad:
        """The load of all together; the backlog is the longest."""
        loads = [engine.load() for engine in self._engines]
        return EngineLoad(
            num_live_rows=sum(load.num_live_rows for load in loads),
            num_waiting_rows=sum(load.num_waiting_rows for load in loads),
            num_queued_tokens=sum(load.num_queued_tokens for load in loads),
            backlog_s=max(load.backlog_s for load in loads),
            draining=any(load.draining for load in loads),
            healthy=all(load.healthy for load in loads),
        )

    def snapshot(self) -> EngineCounters:
        """The counters of all together."""
        total = EngineCounters()
        for engine in self._engines:
            total.add(engine.snapshot())
        return total

    def head_chunk(self, index: int) -> bytes | None:
        """A part of the head, None behind the last; blocks while it is fetched."""
        return self._engines[0].head_chunk(index)

    def _close_parts(self, parts: Sequence[tuple[int, Request]]) -> None:
        for index, part in parts:
            self._engines[index].close(part)

    def _place(self, row: Row) -> int:
        content = row.content = content_of(row)
        with self._lock:
            least = min(range(len(self._work)), key=self._work.__getitem__)
            index, num_rows = self._homes.get(content, (least, 0))
            self._homes[content] = (index, num_rows + 1)
            self._work[index] += row.num_tokens_left
        return index

    def _forget(self, index: int, rows: Sequence[Row]) -> None:
        with self._lock:
            for row in rows:
                self._work[index] -= row.num_tokens_left
                home, num_rows = self._homes[row.content]
                if num_rows > 1:
                    self._homes[row.content] = (home, num_rows - 1)
                else:
                    del self._homes[row.content]


class _Merge:
    """One request's stream, fed by the parts of the request in several engines."""

    def __init__(
        self, request: Request, *, num_parts: int, on_error: Callable[[Request], None]
    ) -> None:
        self._request = request
        self._num_left = num_parts
        self._parts: list[Request] = []
        self._on_error = on_error
        self._abandoned = False
        self._lock = threading.Lock()
        self._pending: collections.deque[tuple[_PartStream, int]] = collections.deque()
        """What the stream holds, in order: whose, and how many bytes."""
        request.stream.on_release = self._release

    def part(self, rows: list[Row], *, on_end: Callable[[], None]) -> Request:
        """The request with some of its rows, as one engine sees it."""
        request = self._request
        part = Request(
            request_id=request.request_id,
            client_id=request.client_id,
            kind=request.kind,
            deadline_s=request.deadline_s,
            targets=request.targets,
            capture=request.capture,
            sampler=request.sampler,
            stream=_PartStream(request.stream.window_bytes, self, on_end),
            rows=rows,
            num_rows=len(rows),
            num_tokens=sum(row.length for row in rows),
        )
        self._parts.append(part)
        return part

    def abandon(self) -> None:
        """One part was refused: the stream hears of nothing more."""
        self._abandoned = True

    def put(self, stream: "_PartStream", item: StreamItem) -> None:
        """Passes an item on; of the ends, the last one, with the first error."""
        if self._abandoned:
            return
        if not isinstance(item, StreamEnd):
            with self._lock:
                if isinstance(item, TargetsReady):
                    self._pending.append((stream, len(item.payload)))
                self._request.stream.put(item)
            return
        request = self._request
        with self._lock:
            self._num_left -= 1
            is_last = self._num_left == 0
            is_first = item.error is not None and request.error is None
            request.error = request.error or item.error
        if is_last:
            request.num_forwards = sum(part.num_forwards for part in self._parts)
            request.num_target_positions = sum(part.num_target_positions for part in self._parts)
            request.stream.put(StreamEnd(request.error))
        elif is_first:
            self._on_error(request)

    def _release(self, num_bytes: int) -> None:
        while num_bytes:
            with self._lock:
                stream, held = self._pending.popleft()
                taken = min(held, num_bytes)
                if held > taken:
                    self._pending.appendleft((stream, held - taken))
            stream.release(taken)
            num_bytes -= taken


class _PartStream(OutputWindow):
    """What one engine writes of a request."""

    def __init__(self, window_bytes: int, merge: _Merge, on_end: Callable[[], None]) -> None:
        super().__init__(window_bytes=window_bytes, on_room=lambda: None)
        self._merge = merge
        self._on_end = on_end

    def _deliver(self, item: StreamItem) -> None:
        if isinstance(item, StreamEnd):
            self._on_end()
        self._merge.put(self, item)
