"""How many positions a row unmasks or remasks at a step, and which ones a ranking gives."""

import torch
from torch import Tensor

from masked_diffusion import schedule


def unmask_fractions_at(step_B: Tensor, num_steps_B: Tensor, *, eps: float) -> Tensor:
    """Looks up each row's `schedule.unmask_fraction`: [B] float32."""
    pairs = zip(step_B.tolist(), num_steps_B.tolist(), strict=True)
    return torch.tensor(
        [schedule.unmask_fraction(step, num_steps, eps=eps) for step, num_steps in pairs],
        dtype=torch.float32,
    )


def unmask_count(
    num_masked_B: Tensor, *, step_B: Tensor, num_steps_B: Tensor, eps: float
) -> Tensor:
    """Counts what the confidence samplers unmask: trunc(float32(n_b) * r_i), and n_b at the end.

    Returns:
        [B] int64. Flooring makes a trajectory start slowly (0 wherever n_b * r_i < 1: an idle
        step) and leaves the remainder to the last step.

    Source: Open-dLLM, `_mdm_sample`.
    """
    fractions_B = unmask_fractions_at(step_B, num_steps_B, eps=eps)
    return (num_masked_B.float() * fractions_B).long()


def remask_count(num_generated_B: Tensor, *, step_B: Tensor, num_steps_B: Tensor) -> Tensor:
    """Counts what p2 leaves masked after a step: floor(n_b * (S - i - 1) / S).

    Args:
        num_generated_B: [B] int64, positions that are not frozen, masked or not.

    Returns:
        [B] int64, in exact integers: upstream's float32 product is one too low in rare cases
        (n = 120, S = 200, i = 94: 62 instead of 63).
    """
    return num_generated_B * (num_steps_B - step_B - 1) // num_steps_B


def ranked_first(keys_BL: Tensor, counts_B: Tensor, *, descending: bool) -> Tensor:
    """Marks the first counts_B[b] positions of each row in the order of its keys.

    Equal keys go by position, the lower first, so the result never depends on the kernel.

    Returns:
        [B, L] bool.
    """
    order_BL = keys_BL.argsort(dim=-1, descending=descending, stable=True)
    ranks_L = torch.arange(keys_BL.shape[1])
    first_BL = (ranks_L < counts_B[:, None]).expand_as(order_BL)
    return torch.zeros_like(first_BL).scatter(1, order_BL, first_BL)
