"""LLaDA's block samplers: a fixed number of positions a step, the surest or any."""

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.blocks import BlockStep, block_step
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.counts import ranked_first


class LowConfidence(Sampler):
    """Unmasks, block by block, the fixed number of a step, the surest first.

    The confidence is the drawn token's probability before the draw's temperature and filters.
    alg_temp and eps are not used.

    Source: LLaDA, `generate` with remasking="low_confidence" (Nie et al., arXiv:2502.09992). Its
    Gumbel noise on logits draws from the same categorical distribution as ours.
    """

    confidence: Confidence = "raw_probability"

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds the candidates of the rows that unmask at least one at this step."""
        step = block_step(rows, config, mask_token_id=mask_token_id)
        return step.candidates_BL & self.may_move(step)[:, None]

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
        """Fills the surest candidates."""
        step = block_step(rows, config, mask_token_id=mask_token_id)
        confidence_BL = confidence_BL.masked_fill(~decided_BL, -torch.inf)
        counts_B = self.counts(step, config, confidence_BL)
        chosen_BL = ranked_first(confidence_BL, counts_B, descending=True) & decided_BL
        return torch.where(chosen_BL, tokens_BL, rows.x_BL)

    def may_move(self, step: BlockStep) -> Tensor:
        """Tells which rows may unmask something: [B] bool."""
        return step.counts_B > 0

    def counts(self, step: BlockStep, config: SamplerConfig, confidence_BL: Tensor) -> Tensor:
        """Counts what each row unmasks: [B] int64; confidences are -inf but at candidates."""
        return step.counts_B
