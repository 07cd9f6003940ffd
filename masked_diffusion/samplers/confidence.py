"""Confidence sampling: the surest masked positions are unmasked first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.counts import ranked_first, unmask_count


@dataclass(frozen=True)
class ConfidenceSampler(Sampler):
    """Unmasks the k_b positions of highest confidence; nothing is ever remasked.

    With alg_temp > 0 the positions are drawn without replacement from
    softmax(confidence / alg_temp), by adding Gumbel noise to the scaled confidences.

    Source: Open-dLLM, alg="maskgit_plus", "topk_margin" and "entropy"; Chang et al.,
    arXiv:2202.04200 (MaskGIT); Kim et al., arXiv:2502.06768 (margin).
    """

    confidence: Confidence

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds the masked positions of the rows that unmask at least one at this step."""
        masked_BL = rows.masked(mask_token_id=mask_token_id)
        return masked_BL & (self._counts(rows, config, masked_BL)[:, None] > 0)

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
        """Fills the surest positions."""
        counts_B = self._counts(rows, config, decided_BL)
        keys_BL = confidence_BL.double()
        if config.alg_temp > 0:
            # float64: in float32 the largest uniform caps the noise and ties appear.
            keys_BL = keys_BL / config.alg_temp - (-rows.uniforms("order").log()).log()
        keys_BL = keys_BL.masked_fill(~decided_BL, -torch.inf)
        chosen_BL = ranked_first(keys_BL, counts_B, descending=True) & decided_BL
        return torch.where(chosen_BL, tokens_BL, rows.x_BL)

    def _counts(self, rows: RowBatch, config: SamplerConfig, masked_BL: Tensor) -> Tensor:
        return unmask_count(
            masked_BL.sum(-1), step_B=rows.step_B, num_steps_B=rows.num_steps_B, eps=config.eps
        )
