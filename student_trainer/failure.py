"""One rank's end ends all ranks soon, with one line each instead of a traceback.

Without this, ranks that wait for a dead one fail in the middle of a collective, or after its
timeout.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import Store

_KEY = "student_trainer/failure"
_POLL_S = 0.5
_WAIT_S = 5.0
_SILENCE_S = 300.0
_EXIT_CODE = 1
_DONE = "done"


class FailureWatch:
    """Tells the other ranks why this one fails, and ends this one when another has failed.

    A rank that is killed tells nothing. What shows it is that its sign of life stands still: at
    once to those whose collective broke, and after `silence_s` to the rank before it where
    collectives do not notice.
    """

    def __init__(
        self, store: Store, *, rank: int, world_size: int, silence_s: float = _SILENCE_S
    ) -> None:
        """Watches until the context ends.

        Args:
            store: shared by all ranks; outlives every one of them under torchrun.
            silence_s: without a sign of life for so long, a rank is gone; longer than anything
                that keeps Python's threads from running.
        """
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._silence_s = silence_s
        self._num_beats = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure-watch", daemon=True)

    def __enter__(self) -> "FailureWatch":
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            if _is_of_torch(error):
                self._end_if_other_is_gone()
            elif self._has_other_failed():
                self._end()
            self._tell(f"rank {self._rank} failed: {error}")
        self._closed.set()
        # Before the store goes: its end must not look like a failure to the last look at it.
        self._thread.join()
        if error is None:
            # Where a rank holds the store, that one may be through and away.
            with contextlib.suppress(RuntimeError):
                self._store.set(_beat_key(self._rank), _DONE)

    def _tell(self, reason: str) -> None:
        self._store.set(_KEY, f"{self._rank}\n{' '.join(reason.split())}")

    def _watch(self) -> None:
        next_rank = (self._rank + 1) % self._world_size
        last_beat, changed_s = "", time.monotonic()
        while not self._closed.wait(_POLL_S):
            try:
                if self._has_other_failed():
                    self._end()
                self._beat()
                beat = self._beats([next_rank])[next_rank]
            except RuntimeError:
                self._end()
            now_s = time.monotonic()
            if beat != last_beat or beat == _DONE:
                last_beat, changed_s = beat, now_s
            elif now_s > changed_s + self._silence_s:
                self._leave_for([next_rank], f"no sign of life for {self._silence_s:g} s")

    def _beat(self) -> None:
        self._num_beats += 1
        self._store.set(_beat_key(self._rank), str(self._num_beats))

    def _beats(self, ranks: list[int]) -> dict[int, str]:
        """The last sign of life of each; empty before the first."""
        keys = {rank: _beat_key(rank) for rank in ranks}
        return {
            rank: self._store.get(key).decode() if self._store.check([key]) else ""
            for rank, key in keys.items()
        }

    def _has_other_failed(self) -> bool:
        try:
            return self._store.check([_KEY]) and self._told()[0] != self._rank
        except RuntimeError:
            # Where a rank holds the store, it went with that rank.
            return True

    def _end_if_other_is_gone(self) -> None:
        """Ends here where this rank's error is only how the end of another looks from here."""
        if threading.current_thread() is threading.main_thread():
            # The launcher stops us because of that other rank; first we say what happened.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        deadline_s = time.monotonic() + _WAIT_S
        try:
            before = self._beats(others)
            while time.monotonic() < deadline_s:
                if self._has_other_failed():
                    self._end()
                self._closed.wait(_POLL_S)
            after = self._beats(others)
        except RuntimeError:
            self._end()
        gone = [rank for rank in others if before[rank] == after[rank] != _DONE]
        if gone:
            self._leave_for(gone, "it ended without a word while others waited for it")

    def _leave_for(self, ranks: list[int], why: str) -> NoReturn:
        names = ", ".join(map(str, ranks))
        reason = f"rank {names} is gone: {why}"
        with contextlib.suppress(RuntimeError):
            self._tell(reason)
        self._leave(reason)

    def _told(self) -> tuple[int, str]:
        """Who told, and what."""
        rank, _, reason = self._store.get(_KEY).decode().partition("\n")
        return int(rank), reason

    def _end(self) -> NoReturn:
        try:
            _, reason = self._told()
        except RuntimeError:
            reason = "the ranks' store is gone"
        self._leave(reason)

    def _leave(self, reason: str) -> NoReturn:
        """Leaves without any clean-up: the main thread may be in a collective that never ends."""
        print(f"distill train (rank {self._rank}): stopped, {reason}", file=sys.stderr, flush=True)
        os._exit(_EXIT_CODE)


def _beat_key(rank: int) -> str:
    return f"student_trainer/beat/{rank}"


def _is_of_torch(error: Exception) -> bool:
    """Whether it may be a collective that another rank left; gloo raises bare RuntimeErrors."""
    return type(error) is RuntimeError or isinstance(error, dist.DistError)
