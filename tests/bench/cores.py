"""Which core a process of a bench runs on."""

import os
from collections.abc import Callable, Iterable


def pin(pick: Callable[[Iterable[int]], int]) -> bool:
    """Keeps this process and every thread it starts from here on, on one core of those it may use.

    Returns:
        False, and nothing is done, where there is a single core or the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        return False
    os.sched_setaffinity(0, {pick(allowed)})
    return True
