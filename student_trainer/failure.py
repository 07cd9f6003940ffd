"""One rank's failure ends all ranks at once, with one line each instead of a traceback.

Without this, ranks that wait for a dead one fail in the middle of a collective, or after its
timeout.
"""

import os
import sys
import threading
import time
from types import TracebackType

from torch.distributed import Store

_KEY = "student_trainer/failure"
_POLL_S = 0.25
_WAIT_S = 5.0
_EXIT_CODE = 1


class FailureWatch:
    """Tells the other ranks why this one fails, and ends this one when another has told so."""

    def __init__(self, store: Store, *, rank: int) -> None:
        """Watches until the context ends.

        Args:
            store: shared by all ranks; outlives every one of them under torchrun.
        """
        self._store = store
        self._rank = rank
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure-watch", daemon=True)

    def __enter__(self) -> "FailureWatch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            if self._other_failed(within_s=_WAIT_S if _is_of_torch(error) else 0.0):
                # This error is only how the other rank's end looks from here.
                self._end()
            self._tell(str(error))
        self._closed.set()
        # Before the store goes: its end must not look like a failure to the last look at it.
        self._thread.join()

    def _tell(self, message: str) -> None:
        self._store.set(_KEY, f"{self._rank}\n{' '.join(message.split())}")

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            if self._other_failed(within_s=0.0):
                self._end()

    def _other_failed(self, *, within_s: float) -> bool:
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                if self._store.check([_KEY]):
                    return self._failed_rank()[0] != self._rank
            except RuntimeError:
                # Where a rank holds the store, it went with that rank.
                return True
            if time.monotonic() >= deadline_s:
                return False
            self._closed.wait(_POLL_S)

    def _failed_rank(self) -> tuple[int, str]:
        rank, _, message = self._store.get(_KEY).decode().partition("\n")
        return int(rank), message

    def _end(self) -> None:
        """Leaves without any clean-up: the main thread may be in a collective that never ends."""
        try:
            rank, message = self._failed_rank()
            reason = f"rank {rank} failed: {message}"
        except RuntimeError:
            reason = "the ranks' store is gone"
        print(f"distill train (rank {self._rank}): stopped, {reason}", file=sys.stderr, flush=True)
        os._exit(_EXIT_CODE)


def _is_of_torch(error: Exception) -> bool:
    """Whether it may be a collective that another rank left; those are bare RuntimeErrors."""
    return isinstance(error, RuntimeError)
