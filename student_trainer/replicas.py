"""Servers that serve the same weights: which one is asked next, and when it is asked again."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from protos import channel as channel_options
from protos import errors
from protos.service import TeacherStub

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_FIRST_PENALTY_S = 2.0
_MAX_RETRY_HINT_S = 30.0
_MAX_PENALTY_S = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How long the client waits for teachers."""

    call_timeout_s: float = 600.0
    """Deadline of one call; a call that made progress is resumed after it."""
    give_up_after_s: float = 120.0
    """Time without any progress after which an error is raised and no longer mended."""


@dataclass(slots=True, eq=False)
class Replica:
    """One server, as this client sees it."""

    name: str
    stub: TeacherStub
    channel: grpc.Channel
    num_in_flight: int = 0
    num_calls: int = 0
    penalty_s: float = _FIRST_PENALTY_S
    penalty_until_s: float = 0.0


@dataclass(slots=True)
class _Attempts:
    """Backoff of one logical call; progress sets it back."""

    last_progress_s: float = field(default_factory=time.monotonic)
    backoff_s: float = _FIRST_BACKOFF_S

    def progressed(self) -> None:
        self.last_progress_s = time.monotonic()
        self.backoff_s = _FIRST_BACKOFF_S


class Replicas:
    """Channels to all addresses; may be used by several threads."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        policy: RetryPolicy,
        *,
        check_alive: Callable[[], None] | None = None,
    ) -> None:
        """Connects lazily.

        Args:
            check_alive: asked before a call is made again; it raises where that cannot help.
        """
        names = [addresses] if isinstance(addresses, str) else list(addresses)
        names = [name.strip() for text in names for name in text.split(",") if name.strip()]
        if not names:
            raise ValueError("teacher_address is empty; give HOST:PORT, or several with commas")
        self.policy = policy
        self._check_alive = check_alive
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._num_retries = 0
        self._replicas = []
        for name in names:
            channel = grpc.insecure_channel(name, options=channel_options.CLIENT_OPTIONS)
            stub = TeacherStub(channel)
            self._replicas.append(Replica(name, stub, channel))

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    @property
    def num_retries(self) -> int:
        """Calls that were made again."""
        return self._num_retries

    def close(self) -> None:
        """Breaks calls in flight, which raise CancelledError, and closes the channels."""
        self._closed.set()
        for replica in self._replicas:
            replica.channel.close()

    def persist(self, ask: Callable[[Replica], Generator[_T]]) -> Iterator[_T]:
        """Runs `ask`, again and again while its errors may be retried and time is left."""
        attempts = _Attempts()
        while True:
            with self._picked() as replica:
                try:
                    with contextlib.closing(ask(replica)) as items:
                        for item in items:
                            yield item
                            # After the yield: the time that the reader takes is not ours.
                            attempts.progressed()
                    replica.penalty_s = _FIRST_PENALTY_S
                    return
                except grpc.RpcError as error:
                    failure = errors.from_rpc_error(error, address=replica.name)
                except errors.CorruptStreamError as error:
                    failure = error
            self._wait_or_raise(failure, replica, attempts)

    def _wait_or_raise(
        self, failure: errors.TeacherError, replica: Replica, attempts: _Attempts
    ) -> None:
        waited_s = time.monotonic() - attempts.last_progress_s
        if not failure.retryable or self._closed.is_set():
            raise failure
        if self._check_alive is not None:
            self._check_alive()
        if waited_s > self.policy.give_up_after_s:
            raise self._gave_up(failure, waited_s) from failure
        # A hint is a hint: it neither makes us spin nor sleep past our own patience.
        hint_s = min(max(failure.retry_after_s or 0.0, 0.0), _MAX_RETRY_HINT_S)
        pause_s = max(hint_s, attempts.backoff_s * random.uniform(0.5, 1.5))
        attempts.backoff_s = min(attempts.backoff_s * 2, _MAX_BACKOFF_S)
        now_s = time.monotonic()
        with self._lock:
            self._num_retries += 1
            # All calls in flight break together when a server dies: that is one failure.
            if replica.penalty_until_s <= now_s:
                replica.penalty_until_s = now_s + replica.penalty_s
                replica.penalty_s = min(replica.penalty_s * 2, _MAX_PENALTY_S)
        logger.warning("retry in_s=%.1f reason=%s error=%r", pause_s, failure.reason, str(failure))
        if self._closed.wait(pause_s):
            raise failure

    def _gave_up(self, failure: errors.TeacherError, waited_s: float) -> errors.TeacherError:
        names = ", ".join(known.name for known in self._replicas)
        mend = ""
        if isinstance(failure, errors.UnreachableError):
            mend = "; check the address and that teacher-server runs there"
        return type(failure)(f"no progress with {names} for {waited_s:.0f} s: {failure}{mend}")

    @contextlib.contextmanager
    def _picked(self) -> Iterator[Replica]:
        """The address with the fewest calls in flight, lately failed ones last."""
        if self._closed.is_set():
            raise errors.CancelledError("the client is closed")
        now_s = time.monotonic()
        with self._lock:
            replica = min(
                self._replicas,
                key=lambda known: (
                    known.penalty_until_s > now_s,
                    known.num_in_flight,
                    known.num_calls,
                ),
            )
            replica.num_in_flight += 1
            replica.num_calls += 1
        try:
            yield replica
        except ValueError as error:
            # What gRPC says to a call on a channel that `close` closed just now.
            if not self._closed.is_set():
                raise
            raise errors.CancelledError("the client is closed") from error
        finally:
            with self._lock:
                replica.num_in_flight -= 1
