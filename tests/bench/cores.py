"""Which core a process of a bench runs on."""

import os
from collections.abc import Callable, Iterable


def pin(pick: Callable[[Iterable[int]], int]) -> bool:
    """Keeps this process and every thread it starts from here on, on one core of those it may use.

    Returns:
        False, and nothing is done, where there is a single core or the system cannot pin.
    """
    return pin_among(pick, allowed())


def pin_among(pick: Callable[[Iterable[int]], int], candidates: frozenset[int]) -> bool:
    """Keeps the calling thread on one of these cores, whatever it was kept on before."""
    if len(candidates) < 2:
        return False
    os.sched_setaffinity(0, {pick(candidates)})
    return True


def allowed() -> frozenset[int]:
    """The cores that this process may use; none where the system cannot tell."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    return frozenset(os.sched_getaffinity(0))
