"""Ranks: how many there are, which one this is, and what they do together."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """This rank's place. Without torchrun there is one rank and no process group."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the rank that prints and writes."""
        return self.rank == 0

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

    def wrap(self, module: nn.Module) -> nn.Module:
        """Data parallel: gradients are averaged over ranks in the last backward of a step."""
        if self.world_size == 1:
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def accumulate(self, module: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Keeps gradients local unless this is the last backward of the step."""
        if is_last or not isinstance(module, DistributedDataParallel):
            yield
        else:
            with module.no_sync():
                yield


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
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Parallel(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=local_rank,
            device=device,
        )
    finally:
        dist.destroy_process_group()
