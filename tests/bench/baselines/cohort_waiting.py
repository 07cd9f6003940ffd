"""Waiting for the rest of a cohort, as a batcher might that knows how many ranks will ask."""

import time

from teacher_server.engine.engine import Engine


class CohortWaitingEngine(Engine):
    """Once idle, waits for all rows of a step of all ranks, for a bounded time.

    It is told how many rows a cohort has, and nobody else asks: the most that a hint could give.
    """

    num_cohort_rows = 0
    max_wait_steps = 2.0
    """How long it waits at most, in mean step times; those of a part of the ranks are short."""
    _waiting_since_s: float | None = None
    _may_wait = True

    def _is_held(self) -> bool:
        if not self._rows:
            self._waiting_since_s, self._may_wait = None, True
            self._idle_wait_s = 0.5
            return False
        # Never while other rows could run, and once for each time that it was idle.
        if not self._may_wait or len(self._rows) >= self.num_cohort_rows:
            self._may_wait = False
            return False
        now_s = time.monotonic()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        counters = self.counters
        step_s = counters.busy_s / counters.num_forwards if counters.num_forwards else 0.0
        left_s = self._waiting_since_s + self.max_wait_steps * step_s - now_s
        self._may_wait = left_s > 0
        self._idle_wait_s = max(left_s, 0.0)
        return self._may_wait
