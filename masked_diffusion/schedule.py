"""The linear schedule: at time t a token is masked with probability t."""

from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)

DEFAULT_EPS = 1e-3


def mask_probability(t: Time) -> Time:
    """Gives the probability that a token is masked at time t in [0, 1]; 1 at t = 1."""
    return t


def alpha(t: Time) -> Time:
    """Gives the share of tokens still unmasked at time t in [0, 1]; 1 at t = 0."""
    return 1 - mask_probability(t)


def timesteps(num_steps: int, *, eps: float = DEFAULT_EPS) -> Tensor:
    """Lays out the times of a sampling trajectory, evenly from 1 down to eps.

    Returns:
        [num_steps + 1] float32; step i goes from element i to element i + 1.

    Raises:
        ValueError: num_steps below 1, or eps outside (0, 1).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie between 0 and 1 (both excluded), got {eps}")
    return torch.linspace(1, eps, num_steps + 1, dtype=torch.float32)


@lru_cache(maxsize=256)
def _unmask_fractions(num_steps: int, eps: float) -> Tensor:
    t_S = mask_probability(timesteps(num_steps, eps=eps))
    fractions_S = 1 - t_S[1:] / t_S[:-1]
    fractions_S[-1] = 1.0
    return fractions_S


def unmask_fractions(num_steps: int, *, eps: float = DEFAULT_EPS) -> Tensor:
    """Gives, for every step, the share of the masked positions that it unmasks.

    Step i unmasks r_i = 1 - t_{i+1} / t_i of what is masked, and the last step all of it (the
    schedule ends at eps, not at 0).

    Returns:
        [num_steps] float32, a new tensor.

    Source: Open-dLLM, `_mdm_sample`; the float32 rounding decides counts and so is kept.
    """
    return _unmask_fractions(num_steps, eps).clone()


def unmask_fraction(step: int, num_steps: int, *, eps: float = DEFAULT_EPS) -> float:
    """Gives element `step` (0 <= step < num_steps) of `unmask_fractions`.

    Raises:
        ValueError: step outside the trajectory.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step must lie in [0, {num_steps}), got {step}")
    return _unmask_fractions(num_steps, eps)[step].item()
