"""Multinomial diffusion: the exact posterior of the uniform process, a step at a time."""

import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.draw import DecidedPositions
from masked_diffusion.samplers.inverse_cdf import invert_cdf
from masked_diffusion.samplers.tokens import TokenSamples, filter_logits


class Multinomial(Sampler):
    """Draws every open position anew at every step; the last step draws x0 itself.

    Temperature and filters shape the denoiser's distribution of x0 (temperature 0 takes its
    likeliest token for certain); the posterior is always drawn from, since its likeliest token is
    nearly always the one already there. alg_temp is not used.

    Source: Hoogeboom et al., arXiv:2102.05379; Schiff et al., arXiv:2412.10193.
    """

    confidence: Confidence = "probability"

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds every position that is not frozen."""
        return ~rows.frozen_BL

    def draw(
        self, logits_MV: Tensor, *, config: SamplerConfig, positions: DecidedPositions
    ) -> TokenSamples:
        """Draws from the posterior, or from x0's distribution at the last step."""
        device = logits_MV.device
        x0_MV = x0_probabilities(logits_MV, config)
        t_M, s_M = _times(positions, eps=config.eps)
        is_last_M1 = positions.is_last[:, None].to(device)
        posterior_MV = posterior(
            x0_MV,
            positions.token_ids_M.to(device),
            t_M=t_M.to(device),
            s_M=s_M.to(device),
            support_MV=logits_MV > EXCLUDED_LOGIT / 2,
        )
        p_MV = torch.where(is_last_M1, x0_MV, posterior_MV)
        token_ids_M = invert_cdf(p_MV, positions.uniforms_M.to(device))
        return TokenSamples(token_ids_M, p_MV.gather(-1, token_ids_M[:, None])[:, 0].float())


def posterior(
    x0_MV: Tensor, token_ids_M: Tensor, *, t_M: Tensor, s_M: Tensor, support_MV: Tensor
) -> Tensor:
    """Computes q(x_s given x_t), x0 averaged over the denoiser's distribution, for s < t.

    It is the joint of two steps of the chain, normalised: forward to x_s from what x0 may be,
    alpha_s x0 + (1 - alpha_s) / K, and on to the x_t that is there, alpha_t|s [x_s = x_t] +
    (1 - alpha_t|s) / K with alpha_t|s = alpha_t / alpha_s. With a certain x0 it is the posterior of
    the Markov chain itself.

    Args:
        x0_MV: [M, V] probabilities, 0 outside the support.
        token_ids_M: [M] int64, x_t.
        t_M: [M] times in (0, 1].
        s_M: [M] times in [0, t), where alpha is above 0.
        support_MV: [M, V] bool: the K ids that noise may be.

    Returns:
        [M, V] float64, 0 outside the support.

    Source: Hoogeboom et al., arXiv:2102.05379 (theta_post with x0 predicted).
    """
    # With eps next to 1 both times may round to 1: pure noise, and no 0 / 0.
    smallest = torch.finfo(torch.float64).tiny
    alpha_s_M1 = schedule.alpha(s_M.double()).clamp_min(smallest)[:, None]
    kept_M1 = schedule.alpha(t_M.double())[:, None] / alpha_s_M1
    noise_MV = support_MV / support_MV.sum(-1, keepdim=True, dtype=torch.float64)
    is_there_MV = torch.zeros_like(noise_MV).scatter_(-1, token_ids_M[:, None], 1.0)
    to_s_MV = alpha_s_M1 * x0_MV + (1 - alpha_s_M1) * noise_MV
    joint_MV = to_s_MV * (kept_M1 * is_there_MV + (1 - kept_M1) * noise_MV)
    return joint_MV / joint_MV.sum(-1, keepdim=True)


def x0_probabilities(logits_MV: Tensor, config: SamplerConfig) -> Tensor:
    """Gives the denoiser's distribution of x0, [M, V] float64, tempered and filtered."""
    logits_MV = logits_MV.float()
    if config.temperature == 0:
        one_hot_MV = torch.zeros_like(logits_MV, dtype=torch.float64)
        return one_hot_MV.scatter_(-1, logits_MV.argmax(-1, keepdim=True), 1.0)
    filtered_MV = filter_logits(
        logits_MV / config.temperature, top_p=config.top_p, top_k=config.top_k
    )
    return torch.softmax(filtered_MV.double(), dim=-1)


def _times(positions: DecidedPositions, *, eps: float) -> tuple[Tensor, Tensor]:
    """Times before and after the step of each position: two of [M] float32."""
    pairs = torch.stack([positions.step_M, positions.num_steps_M], dim=1)
    distinct, index_M = pairs.unique(dim=0, return_inverse=True)
    spans = [
        schedule.timesteps(num_steps, eps=eps)[step : step + 2]
        for step, num_steps in distinct.tolist()
    ]
    spans_M2 = torch.stack(spans)[index_M] if spans else torch.empty(0, 2)
    return spans_M2[:, 0], spans_M2[:, 1]
