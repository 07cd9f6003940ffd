"""Where requests, and their ends, cross from the event loop into the engine's thread."""

import threading
from collections.abc import Callable, Iterable

from protos import errors
from teacher_server.engine.sequence import Request

_DEFAULT_RETRY_AFTER_S = 1.0
_MIN_RETRY_AFTER_S = 0.1
_MAX_RETRY_AFTER_S = 30.0


def bounded_hint_s(seconds: float) -> float:
    """A retry hint of about so long."""
    return min(max(seconds, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S)


def retry_hint_s(backlog_s: float) -> float:
    """When to come back to an engine with so many seconds of work; 0 = nobody knows."""
    return bounded_hint_s(backlog_s / 2) if backlog_s else _DEFAULT_RETRY_AFTER_S


def check_readers(requests: Iterable[Request], *, max_bytes: int) -> None:
    """Raises OverloadedError while the readers of these requests are too far behind."""
    pending = sum(request.stream.pending_bytes for request in requests)
    if pending > max_bytes:
        raise errors.OverloadedError(
            f"readers are behind by {pending} bytes, limit {max_bytes}; retry later",
            retry_after_s=_DEFAULT_RETRY_AFTER_S,
        )


class AdmissionQueue:
    """Admits requests in tokens, refuses what does not fit, and wakes the engine.

    Tokens stay counted from `submit` until the engine calls `release`, so the limit covers waiting
    and live rows alike.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._changed = threading.Condition()
        self._incoming: list[Request] = []
        self._closed: list[Request] = []
        self._num_tokens = 0
        self._num_released_tokens = 0
        self._woken = False
        self._draining = False
        self._failure: errors.TeacherError | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all admitted rows that have not ended."""
        return self._num_tokens

    @property
    def num_released_tokens(self) -> int:
        """Tokens of all rows that have ended, since the start."""
        return self._num_released_tokens

    @property
    def draining(self) -> bool:
        """True once new requests are refused."""
        return self._draining

    def submit(self, request: Request, *, retry_after_s: Callable[[], float]) -> None:
        """Admits a request, or raises as `check` does."""
        with self._changed:
            self.check(request, retry_after_s=retry_after_s)
            self._num_tokens += request.num_tokens
            self._incoming.append(request)
            self._wake()

    def check(self, request: Request, *, retry_after_s: Callable[[], float]) -> None:
        """Raises what keeps a request out at this moment.

        Raises:
            DrainingError: the server is stopping.
            OverloadedError: its tokens do not fit; carries the hint of `retry_after_s`.
            EngineError: the engine has stopped.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._draining:
                raise errors.DrainingError("the server is stopping; use another replica")
            if self._num_tokens and self._num_tokens + request.num_tokens > self._max_tokens:
                raise errors.OverloadedError(
                    f"queue is full: {self._num_tokens} tokens are admitted, the request has "
                    f"{request.num_tokens}, limit {self._max_tokens}; retry later",
                    retry_after_s=retry_after_s(),
                )

    def close(self, request: Request) -> None:
        """Asks the engine to drop what is left of a request; harmless when it has ended."""
        with self._changed:
            self._closed.append(request)
            self._wake()

    def release(self, num_tokens: int) -> None:
        """Gives the tokens of ended rows back."""
        with self._changed:
            self._num_tokens -= num_tokens
            self._num_released_tokens += num_tokens
            self._changed.notify_all()

    def wake(self) -> None:
        """Makes `take` return: something outside changed."""
        with self._changed:
            self._wake()

    def drain(self) -> None:
        """Refuses new requests from now on."""
        with self._changed:
            self._draining = True
            self._wake()

    def fail(self, error: errors.TeacherError) -> None:
        """Refuses new requests with this error: the engine is dead."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def take(self, *, timeout_s: float) -> tuple[list[Request], list[Request]]:
        """New requests and closed ones; waits up to `timeout_s` while there is nothing new."""
        with self._changed:
            if not self._woken and timeout_s > 0:
                self._changed.wait_for(lambda: self._woken, timeout=timeout_s)
            self._woken = False
            incoming, self._incoming = self._incoming, []
            closed, self._closed = self._closed, []
            return incoming, closed

    def wait_empty(self, *, timeout_s: float) -> bool:
        """Waits until no admitted row is left; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_tokens == 0, timeout=timeout_s)

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()
