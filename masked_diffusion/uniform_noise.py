"""Uniform noise: a token gives way to any id of the support, all of them equally likely.

The support is every real id but the mask id, K = vocab_size - 1 of them: the mask is neither noise
nor a prediction.

Source: Hoogeboom et al., arXiv:2102.05379 (multinomial diffusion); Austin et al., arXiv:2107.03006
(D3PM, uniform).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.forward_process import NoisedBatch
from masked_diffusion.randomness import keyed_uniforms_batch


def uniform_ids(uniforms: Tensor, info: DenoiserInfo) -> Tensor:
    """Turns float64 uniforms in (0, 1) into int64 ids of the support, each equally likely."""
    support_size = info.vocab_size - 1
    ranks = (uniforms.double() * support_size).long().clamp(max=support_size - 1)
    return ranks + (ranks >= info.mask_token_id)


def replace_tokens(
    x0_BL: Tensor,
    *,
    noisable_BL: Tensor,
    t_B: Tensor,
    uniforms_BL: Tensor,
    noise_BL: Tensor,
    lengths_B: Tensor,
) -> NoisedBatch:
    """Replaces each noisable position on its own with probability 1 - alpha(t) of its row.

    The draw may be the token that was there, so xt does not tell where noise is: every noisable
    position carries a loss.

    Args:
        x0_BL: [B, L] int64 clean ids, right padded; not changed.
        noisable_BL: [B, L] bool, from `forward_process.maskable_positions`.
        t_B: [B] times in [0, 1].
        uniforms_BL: [B, L] in (0, 1); a position is replaced where it lies below 1 - alpha(t).
        noise_BL: [B, L] int64, from `uniform_ids`.
        lengths_B: [B] real positions, passed through.
    """
    replaced_BL = noisable_BL & (uniforms_BL < 1 - schedule.alpha(t_B)[:, None])
    return NoisedBatch(
        x0_BL=x0_BL,
        xt_BL=torch.where(replaced_BL, noise_BL, x0_BL),
        loss_BL=noisable_BL,
        t_B=t_B,
        lengths_B=lengths_B,
    )


def start_states(
    x_BL: Tensor,
    *,
    frozen_BL: Tensor,
    info: DenoiserInfo,
    seeds: Sequence[int],
    sequence_ids: Sequence[int],
) -> Tensor:
    """Puts pure noise where a start state asks for tokens, that is where it is masked and open.

    So a start state says the same thing for every kind of noise, and a state of the caller's own
    that is noisy already stays as it is. The draw is keyed by the sequence, as all draws are.

    Returns:
        [B, L] int64, a new tensor.
    """
    uniforms_BL = keyed_uniforms_batch(
        seeds=seeds,
        sequence_ids=sequence_ids,
        steps=[0] * len(seeds),
        length=x_BL.shape[1],
        stream="start",
    )
    asked_BL = (x_BL == info.mask_token_id) & ~frozen_BL
    return torch.where(asked_BL, uniform_ids(uniforms_BL, info), x_BL)
