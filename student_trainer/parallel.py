"""Ranks: how many there are, which one this is, and what they do together."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store

from student_trainer.failure import FailureWatch

_T = TypeVar("_T")
_TIMEOUT = timedelta(minutes=30)
_POLL_S = 0.05
_MEETING_KEY = "student_trainer/meeting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """This rank's place. Without torchrun there is one rank and no process group."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device
    store: Store | None = None
    """Where ranks meet; None without a process group."""
    _meetings: Iterator[int] = field(
        default_factory=itertools.count, init=False, repr=False, compare=False
    )

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

    @property
    def has_group(self) -> bool:
        """True under torchrun, even with one rank."""
        return dist.is_initialized()

    def sum(self, values: list[float]) -> list[float]:
        """Sums numbers over ranks, in float64."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        # Scalars go over the CPU's backend, so that no device waits for them.
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def maximum(self, value: float) -> float:
        """The largest of the ranks' numbers."""
        return max(self.gather(value))

    def gather(self, value: _T) -> list[_T]:
        """Every rank's object, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[_T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def meet(self) -> None:
        """Returns when every rank has come here, however long that takes.

        A collective would fail after a while, and tokenizing may take hours. A rank that is gone
        ends the wait by the watch over failures.
        """
        if self.store is None:
            return
        key = f"{_MEETING_KEY}/{next(self._meetings)}"
        if self.store.add(key, 1) == self.world_size:
            self.store.set(f"{key}/all", "")
        while not self.store.check([f"{key}/all"]):
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def first_of_node_goes_first(self) -> Iterator[None]:
        """Lets the other ranks of a machine wait outside until its first one is through."""
        if self.local_rank:
            self.meet()
        yield
        if not self.local_rank:
            self.meet()


@contextlib.contextmanager
def start_parallel() -> Iterator[Parallel]:
    """Joins the ranks that torchrun started, gloo on the CPU and NCCL on GPUs."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "RANK" not in os.environ:
        yield Parallel(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    dist.init_process_group(
        backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=world_size
    )
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        # A store of its own connection: a wait of the other one must not hold this one up.
        stack.enter_context(FailureWatch(store.clone(), rank=rank, world_size=world_size))
        yield Parallel(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            device=device,
            # Of its own connection too: the collectives' may be in a wait on another thread.
            store=store.clone(),
        )
