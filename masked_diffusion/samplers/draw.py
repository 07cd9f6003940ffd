"""Draws the tokens of a step: from the denoiser's distribution, or as the sampler itself says."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import SamplerConfig
from masked_diffusion.samplers.tokens import TokenSamples, sample_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class DecidedPositions:
    """What is known of the M positions of a step that are decided, in row-major order."""

    uniforms_M: Tensor
    """[M] float64 in (0, 1), stream "token"."""
    token_ids_M: Tensor
    """[M] int64, the tokens there now."""
    step_M: Tensor
    """[M] int64."""
    num_steps_M: Tensor
    """[M] int64."""

    @property
    def is_last(self) -> Tensor:
        """[M] bool, where the step is the trajectory's last."""
        return self.step_M == self.num_steps_M - 1

    def __getitem__(self, part: slice) -> "DecidedPositions":
        return DecidedPositions(
            uniforms_M=self.uniforms_M[part],
            token_ids_M=self.token_ids_M[part],
            step_M=self.step_M[part],
            num_steps_M=self.num_steps_M[part],
        )


@runtime_checkable
class DrawingSampler(Protocol):
    """A sampler whose tokens come from another distribution than the denoiser's alone."""

    def draw(
        self, logits_MV: Tensor, *, config: SamplerConfig, positions: DecidedPositions
    ) -> TokenSamples:
        """Draws a token per position; logits as for `sample_tokens`, of the same M positions."""
        ...


def decided_positions(rows: RowBatch, decided_BL: Tensor) -> DecidedPositions:
    """Gathers what a draw may look at."""
    counts_B = decided_BL.sum(-1)
    return DecidedPositions(
        uniforms_M=rows.uniforms("token")[decided_BL],
        token_ids_M=rows.x_BL[decided_BL],
        step_M=rows.step_B.repeat_interleave(counts_B),
        num_steps_M=rows.num_steps_B.repeat_interleave(counts_B),
    )


def draw_tokens(
    sampler: Sampler, logits_MV: Tensor, *, config: SamplerConfig, positions: DecidedPositions
) -> TokenSamples:
    """Draws a token per position, on the device of the logits."""
    if isinstance(sampler, DrawingSampler):
        return sampler.draw(logits_MV, config=config, positions=positions)
    return sample_tokens(
        logits_MV,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        confidence=sampler.confidence,
        uniforms_M=positions.uniforms_M,
        greedy_M=positions.is_last.to(logits_MV.device) if sampler.ends_greedily else None,
    )
