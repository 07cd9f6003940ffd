"""A bounded window of work ahead of its reader, in order, on background threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_InT = TypeVar("_InT")
_OutT = TypeVar("_OutT")


class Prefetcher(Generic[_InT, _OutT]):
    """Maps `fetch` over items, up to `window` of them in flight, and yields results in order.

    An error of `fetch` is raised where its result would have come. Leaving the context stops the
    threads; `on_close` breaks calls that are still in flight, so nothing hangs.
    """

    def __init__(
        self,
        items: Iterable[_InT],
        fetch: Callable[[_InT], _OutT],
        *,
        window: int,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._items = iter(items)
        self._fetch = fetch
        self._window = window
        self._on_close = on_close
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=window, thread_name_prefix="prefetch")
        self._in_flight: deque[Future[_OutT]] = deque()

    def __enter__(self) -> "Prefetcher[_InT, _OutT]":
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for future in self._in_flight:
            future.cancel()
        if self._on_close is not None:
            self._on_close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[_OutT]:
        while self._in_flight:
            result = self._in_flight[0].result()
            self._in_flight.popleft()
            self._fill()
            yield result

    def _fill(self) -> None:
        while len(self._in_flight) < self._window and not self._closed.is_set():
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._in_flight.append(self._pool.submit(self._fetch, item))
