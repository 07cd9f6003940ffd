"""Entropy-bounded unmasking: as many positions a step as depend little on each other."""

import torch
from torch import Tensor

from masked_diffusion.samplers.blocks import BlockStep
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.low_confidence import LowConfidence


class EntropyBounded(LowConfidence):
    """Unmasks, block by block, the longest run of least entropies within the bound.

    Sorted by entropy, positions are taken while the sum of entropies less the largest of them, an
    upper bound on what the joint distribution loses by drawing them apart, is at most
    entropy_bound; the first always is. The last step of a block takes all that is left, so
    num_steps should not be less than the number of masked positions where the bound must hold
    throughout.

    Entropies belong to the distribution before the draw's temperature and filters.

    Source: Ben-Hamu et al., arXiv:2505.24857 (EB-Sampler).
    """

    confidence: Confidence = "raw_negative_entropy"

    def may_move(self, step: BlockStep) -> Tensor:
        """Every row with a candidate: one at least is always taken."""
        return step.candidates_BL.any(-1)

    def counts(self, step: BlockStep, config: SamplerConfig, confidence_BL: Tensor) -> Tensor:
        """Counts the run within the bound, all candidates at the block's last step."""
        entropies_BL = (-confidence_BL.double()).sort(dim=-1).values
        # The sum less the largest is the sum of those before it.
        before_BL = entropies_BL.masked_fill(entropies_BL.isinf(), 0).cumsum(-1).roll(1, dims=-1)
        before_BL[:, :1] = 0
        num_left_B = step.candidates_BL.sum(-1)
        within_B = (before_BL <= config.entropy_bound).sum(-1).minimum(num_left_B)
        return torch.where(step.is_last_B, num_left_B, within_B)
