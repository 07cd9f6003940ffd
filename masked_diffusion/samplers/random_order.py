"""LLaDA's block sampler without a confidence: a fixed number a step, in random order."""

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.blocks import block_step
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.counts import ranked_first


class RandomOrder(Sampler):
    """Unmasks, block by block, the fixed number of a step, whatever the denoiser says.

    The draws are keyed, so they are known before the forward: only positions that are unmasked
    now need the denoiser. alg_temp and eps are not used.

    Source: LLaDA, `generate` with remasking="random".
    """

    confidence: Confidence = "probability"

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Draws the positions that this step unmasks."""
        step = block_step(rows, config, mask_token_id=mask_token_id)
        keys_BL = rows.uniforms("order").masked_fill(~step.candidates_BL, -torch.inf)
        return ranked_first(keys_BL, step.counts_B, descending=True) & step.candidates_BL
