"""Collecting targets in the trainer's process, as the original scheme did, for one request.

The sampling loop of Open-dLLM with the collector on top: a batch of sequences of one length, the
logits of all positions at every step, temperature and top-k filter over the whole vocabulary, P2's
update, and at every n-th step a copy of the masked positions' logits to the CPU. No batch holds
rows of two requests. Its bugs are not copied, and neither is anything slower than it was: the top-k
filter finds the k-th largest without a sort, as there.
"""

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser


@torch.no_grad()
def collect(
    denoiser: Denoiser,
    x_BL: Tensor,
    *,
    num_steps: int,
    temperature: float,
    top_k: int,
    every_n_steps: int,
) -> list[Tensor]:
    """Runs one batch to its end.

    Args:
        x_BL: [B, L] int64 start states, without padding.

    Returns:
        [M, V] float32 logits of the masked positions on the CPU, for each collected step.
    """
    mask_token_id = denoiser.info.mask_token_id
    x_BL = x_BL.clone()
    fixed_BL = x_BL != mask_token_id
    num_open_B = (~fixed_BL).sum(-1)
    collected = []
    for step in range(num_steps):
        masked_BL = x_BL == mask_token_id
        if not masked_BL.any():
            break
        logits_BLV = denoiser.logits(denoiser.hidden_states(x_BL))
        if step % every_n_steps == 0:
            collected.append(logits_BLV[masked_BL].cpu())
        confidence_BL, tokens_BL = _sample(logits_BLV, temperature=temperature, top_k=top_k)
        confidence_BL[fixed_BL] = torch.inf
        num_masked_B = num_open_B * (num_steps - step - 1) // num_steps
        ranks_BL = confidence_BL.argsort(-1).argsort(-1)
        remask_BL = (ranks_BL < num_masked_B[:, None]) & ~fixed_BL
        x_BL = torch.where(masked_BL, tokens_BL, x_BL).masked_fill(remask_BL, mask_token_id)
    return collected


def _sample(logits_BLV: Tensor, *, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    logits_BLV = logits_BLV / temperature
    kth_BL1 = logits_BLV.topk(top_k, dim=-1).values[..., -1:]
    logits_BLV = logits_BLV.masked_fill(logits_BLV < kth_BL1, torch.finfo(logits_BLV.dtype).min)
    p_BLV = torch.softmax(logits_BLV, dim=-1)
    tokens_BL = torch.multinomial(p_BLV.flatten(0, 1), 1).view(p_BLV.shape[:-1])
    return p_BLV.gather(-1, tokens_BL[..., None])[..., 0], tokens_BL
