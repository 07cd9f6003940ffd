"""Ranks that fail, wait or end; a module of its own that they import."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from student_trainer.failure import FailureWatch
from student_trainer.parallel import start_parallel


def fail_beside_a_collective() -> int:
    """The last rank fails while the others are in a collective; exit code 1."""
    try:
        with start_parallel() as parallel:
            parallel.sum([1.0])
            if parallel.rank == parallel.world_size - 1:
                raise ValueError("the disk is full")
            parallel.sum([1.0])
    except ValueError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def go_one_after_another() -> None:
    """The first rank takes longer than a collective waits; every rank prints when it was in."""
    with start_parallel() as parallel:
        parallel.sum([1.0])  # connects them
        distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
        with parallel.first_of_node_goes_first():
            begun_s = time.monotonic()
            if parallel.is_main:
                threading.Event().wait(2.0)
            print(begun_s, time.monotonic(), flush=True)


def fail_on_last() -> int:
    """The last rank fails while the others wait, in no collective; exit code 1."""
    try:
        with _watched() as (rank, world_size):
            if rank == world_size - 1:
                raise ValueError("the disk is full")
            threading.Event().wait()
    except ValueError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def wait_without_end(silence_s: float) -> None:
    """Every rank waits until it is ended."""
    with _watched(silence_s=silence_s):
        print("waits", flush=True)
        threading.Event().wait()


def end_one_after_another(silence_s: float) -> None:
    """The first rank ends at once, the second a while later."""
    with _watched(silence_s=silence_s) as (rank, _):
        if rank:
            threading.Event().wait(3 * silence_s)


@contextmanager
def _watched(**options: float) -> Iterator[tuple[int, int]]:
    store, rank, world_size = next(dist.rendezvous("env://"))
    with FailureWatch(store, rank=rank, world_size=world_size, **options):
        yield rank, world_size
