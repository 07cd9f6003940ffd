"""MDLM's ancestral sampling: the exact posterior of the absorbing process, then noise removal."""

import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.samplers.base import RowBatch
from masked_diffusion.samplers.config import SamplerConfig
from masked_diffusion.samplers.origin import Origin


class Ancestral(Origin):
    """Takes num_steps - 1 steps of the posterior, and removes what noise is left with the last.

    From time t to s a masked position stays masked with probability s / t and else becomes a
    token drawn from the denoiser's distribution, which gives the mask id none (SUBS). Times fall
    evenly from 1 to eps over the posterior's steps; the last step, at eps, takes the most likely
    token wherever a mask is left. With num_steps = 1 that is all there is.

    `Origin` draws the same transitions, but has them fall from 1 to eps over num_steps steps, and
    its last step draws every token that is left instead of taking the likeliest.

    Source: Sahoo et al., arXiv:2406.07524 (MDLM), the ddpm sampler with noise removal; its
    num_steps counts the posterior's steps alone.
    """

    ends_greedily = True

    def times(self, config: SamplerConfig) -> Tensor:
        """Gives the time of the state that each step begins with: [num_steps] float32."""
        if config.num_steps == 1:
            return torch.ones(1)
        return schedule.timesteps(config.num_steps - 1, eps=config.eps)

    def fractions(self, rows: RowBatch, config: SamplerConfig) -> Tensor:
        """Gives 1 - s / t of each row's step, and 1 at the last."""
        pairs = zip(rows.step_B.tolist(), rows.num_steps_B.tolist(), strict=True)
        return torch.tensor(
            [_unmask_fraction(step, num_steps, eps=config.eps) for step, num_steps in pairs]
        )


def _unmask_fraction(step: int, num_steps: int, *, eps: float) -> float:
    """Computes 1 - s / t of a posterior's step from t to s, 1 for the last step."""
    if step == num_steps - 1:
        return 1.0
    times = schedule.timesteps(num_steps - 1, eps=eps)
    return 1 - float(times[step + 1] / times[step])
