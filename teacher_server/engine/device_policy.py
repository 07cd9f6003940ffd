"""How numbers get to the denoiser's device and back, and which format it is slow in.

Copies are page-locked on CUDA alone: that path follows CUDA's documentation and was never run.
"""

import time

import torch
from torch import Tensor

_NUM_TRIALS = 3
_SIDE = 384


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device; on CUDA without waiting for the copy.

    What the caller frees meanwhile is safe: page-locked memory is kept until its copies are over.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copies a tensor to the CPU; its numbers are there on return.

    On CUDA through page-locked memory, waiting for this thread's stream alone.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu()
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return copied


def float32_speedup(dtype: torch.dtype) -> float:
    """Time of a linear layer on this CPU in `dtype` over that in float32, measured in turn."""
    times: dict[torch.dtype, list[float]] = {dtype: [], torch.float32: []}
    for _ in range(_NUM_TRIALS):
        for kind, seconds in times.items():
            factor = torch.ones(_SIDE, _SIDE, dtype=kind)
            started_s = time.perf_counter()
            torch.nn.functional.linear(factor, factor)
            seconds.append(time.perf_counter() - started_s)
    # The least of each: others on the machine only add.
    return min(times[dtype]) / min(times[torch.float32])
