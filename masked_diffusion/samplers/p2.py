"""P2, path planning: fills every mask, then masks again what it is least sure of."""

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.counts import ranked_first, remask_count


class P2(Sampler):
    """Keeps R_b = floor(N_b * (S - i - 1) / S) positions masked after step i, the least sure ones.

    The confidence of a position that is already unmasked comes from a freshly drawn token, but a
    position that stays unmasked keeps its old one. alg_temp and eps are not used.

    Source: Open-dLLM, alg="p2"; Peng et al., arXiv:2502.03540.
    """

    confidence: Confidence = "probability"

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds every position that is not frozen, in the rows that still hold a mask."""
        unfinished_B = rows.masked(mask_token_id=mask_token_id).any(-1)
        return ~rows.frozen_BL & unfinished_B[:, None]

    def update(
        self,
        rows: RowBatch,
        config: SamplerConfig,
        *,
        mask_token_id: int,
        decided_BL: Tensor,
        tokens_BL: Tensor,
        confidence_BL: Tensor,
    ) -> Tensor:
        """Fills the masks and remasks the least sure positions."""
        counts_B = remask_count(
            decided_BL.sum(-1), step_B=rows.step_B, num_steps_B=rows.num_steps_B
        )
        # A score that is not finite counts as sure, as upstream, but behind it come the frozen
        # positions, which must never be reached.
        surest = torch.finfo(confidence_BL.dtype).max
        keys_BL = confidence_BL.masked_fill(~confidence_BL.isfinite(), surest)
        keys_BL = keys_BL.masked_fill(~decided_BL, torch.inf)
        remask_BL = ranked_first(keys_BL, counts_B, descending=False)
        fill_BL = decided_BL & (rows.x_BL == mask_token_id)
        filled_BL = torch.where(fill_BL, tokens_BL, rows.x_BL)
        return filled_BL.masked_fill(remask_BL, mask_token_id)
