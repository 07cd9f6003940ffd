"""Parallel unmasking by a threshold: as many positions a step as the denoiser is sure of."""

from torch import Tensor

from masked_diffusion.samplers.blocks import BlockStep
from masked_diffusion.samplers.config import SamplerConfig
from masked_diffusion.samplers.low_confidence import LowConfidence


class LowConfidenceDynamic(LowConfidence):
    """Unmasks, block by block, every position surer than the threshold, the fixed number at least.

    A block that is full early passes its remaining steps idly, which costs no forward.

    Source: Wu et al., arXiv:2505.22618 (Fast-dLLM); SDAR, "low_confidence_dynamic".
    """

    def may_move(self, step: BlockStep) -> Tensor:
        """Every row with a candidate: only the denoiser knows how sure it is."""
        return step.candidates_BL.any(-1)

    def counts(self, step: BlockStep, config: SamplerConfig, confidence_BL: Tensor) -> Tensor:
        """Counts what is above the threshold, and the fixed number where that is more."""
        return step.counts_B.maximum((confidence_BL > config.threshold).sum(-1))
