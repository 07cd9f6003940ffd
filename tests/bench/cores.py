"""Which core a process of a bench runs on."""

import os


def pin(core: int) -> None:
    """Keeps this process, with every thread it starts from here on, on one core."""
    os.sched_setaffinity(0, {core})
