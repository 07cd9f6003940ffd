"""Whether what is asked for can be done in time, beside what is admitted already."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from teacher_server.engine.sequence import Request

_MARGIN = 1.25
"""Estimates are held to be this much too short: speed drifts, and streams take time to end."""
_MEMORY = 0.9
"""What a step leaves of the weight of those before it, in the pace."""


@dataclass(slots=True)
class Pace:
    """Tokens a second of the last steps. Not the mean since the start: small batches are slow."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Counts one step."""
        self.num_tokens = _MEMORY * self.num_tokens + num_tokens
        self.seconds = _MEMORY * self.seconds + seconds

    @property
    def tokens_per_s(self) -> float:
        """0 while nothing is known."""
        return self.num_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is left of one request."""

    client_id: str
    deadline_s: float
    num_tokens: int
    """Of all forwards to come."""
    num_steps: int = 1
    """Forwards that must follow each other."""
    step_tokens: int = 0
    """Of one forward of all its rows."""


def load_of(request: Request) -> Load:
    """At this moment; rows that another one runs for cost nothing."""
    # A copy: the engine's thread takes rows out.
    rows = [row for row in list(request.rows) if row.leader is None]
    return Load(
        client_id=request.client_id,
        deadline_s=request.deadline_s,
        num_tokens=sum(row.num_tokens_left for row in rows),
        num_steps=max((max(1, row.num_steps - row.step) for row in rows), default=0),
        step_tokens=sum(row.step_tokens for row in rows),
    )


def late_s(
    new: Load,
    admitted: Iterable[Load],
    *,
    now_s: float,
    tokens_per_s: float,
    max_batch_tokens: int,
) -> float:
    """Seconds by which admitting `new` would miss deadlines: its own, or one that is met today.

    A request ends, at the latest, when its client has had what that client asked for with no later
    deadline, and each other client as much or all that it asked for. Every step of a trajectory
    also waits for a whole batch, as large as all that is in flight makes it.

    Returns:
        0 where all is in time, where no speed is known, and where nothing else is to be done: a
        retry would find the same.
    """
    others = [load for load in admitted if load.num_tokens]
    if not others or not tokens_per_s:
        return 0.0
    after = [*others, new]
    left_s = np.array([load.deadline_s for load in after]) - now_s
    batch = _batch_tokens(after, max_batch_tokens)
    if sum(load.num_tokens for load in after) * _MARGIN <= tokens_per_s * left_s.min() and (
        max(load.num_steps for load in after) * batch * _MARGIN <= tokens_per_s * left_s.min()
    ):
        return 0.0  # in any order
    before_s = _tokens_before_end(others, max_batch_tokens) / tokens_per_s
    after_s = _tokens_before_end(after, max_batch_tokens) / tokens_per_s
    over_s = after_s * _MARGIN - left_s
    # Those that are lost anyway, or lose nothing by it, keep nobody out.
    keeps_out = np.append((before_s <= left_s[:-1]) & (after_s[:-1] > before_s), True)
    return float(max(0.0, over_s[keeps_out].max()))


def _tokens_before_end(loads: Sequence[Load], max_batch_tokens: int) -> np.ndarray:
    """[R] tokens that are done before each load is, itself included, with fair shares."""
    of_client: defaultdict[str, int] = defaultdict(int)
    own = np.empty(len(loads))
    for index in sorted(range(len(loads)), key=lambda index: loads[index].deadline_s):
        of_client[loads[index].client_id] += loads[index].num_tokens
        own[index] = of_client[loads[index].client_id]
    clients = np.sort(np.array(list(of_client.values()), dtype=np.float64))
    sums = np.concatenate([[0.0], np.cumsum(clients)])
    num_smaller = np.searchsorted(clients, own)
    shares = sums[num_smaller] + (len(clients) - num_smaller) * own
    batch = _batch_tokens(loads, max_batch_tokens)
    return np.maximum(shares, np.array([load.num_steps for load in loads]) * float(batch)) + batch


def _batch_tokens(loads: Sequence[Load], max_batch_tokens: int) -> int:
    """Of the largest step that these make: few rows never fill the budget, however long they run.

    A row longer than the budget runs alone; that step is taken for a full one.
    """
    return min(max_batch_tokens, sum(load.step_tokens for load in loads))
