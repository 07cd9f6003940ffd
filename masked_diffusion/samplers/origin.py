"""Ancestral sampling: every masked position is unmasked independently of what the denoiser says."""

from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.counts import unmask_fractions_at


class Origin(Sampler):
    """Unmasks each masked position with the schedule's probability, and all at the last step.

    The draws are keyed, so they are known before the forward: only positions that are unmasked
    now need the denoiser. alg_temp is not used.

    Source: Open-dLLM, alg="origin"; Sahoo et al., arXiv:2406.07524 (ancestral sampling).
    """

    confidence: Confidence = "probability"

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Draws the positions that this step unmasks."""
        transfer_BL = rows.uniforms("order") < self.fractions(rows, config)[:, None]
        return rows.masked(mask_token_id=mask_token_id) & transfer_BL

    def fractions(self, rows: RowBatch, config: SamplerConfig) -> Tensor:
        """Gives the probability that a masked position of a row is unmasked: [B] float32."""
        return unmask_fractions_at(rows.step_B, rows.num_steps_B, eps=config.eps)
