"""What every sampler shares: the rows it works on, and its interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.randomness import keyed_uniforms_batch
from masked_diffusion.samplers.config import Confidence, SamplerConfig
from masked_diffusion.samplers.draw import DecidedPositions
from masked_diffusion.samplers.tokens import TokenSamples, sample_tokens


@dataclass(kw_only=True)
class RowBatch:
    """Sequences that one sampler advances together, each at its own step of its own trajectory."""

    x_BL: Tensor
    """[B, L] int64 on the CPU, the current state; right padded."""
    frozen_BL: Tensor
    """[B, L] bool: prompt, padding, anything given. Never touched, even where it holds the mask."""
    step_B: Tensor
    """[B] int64, the step about to be taken; 0 <= step < num_steps."""
    num_steps_B: Tensor
    """[B] int64."""
    seeds: list[int]
    """Of each row's request."""
    sequence_ids: list[int]
    """Of each row within its request."""
    denoiser_block_length: int | None = None
    """Positions of a block of a block-causal denoiser, counted from position 0; else None."""

    def masked(self, *, mask_token_id: int) -> Tensor:
        """Finds the positions still to be unmasked: [B, L] bool."""
        return (self.x_BL == mask_token_id) & ~self.frozen_BL

    def uniforms(self, stream: str) -> Tensor:
        """Draws this step's [B, L] float64 uniforms in (0, 1), keyed by row."""
        return keyed_uniforms_batch(
            seeds=self.seeds,
            sequence_ids=self.sequence_ids,
            steps=self.step_B.tolist(),
            length=self.x_BL.shape[1],
            stream=stream,
        )

    def decided(self, decided_BL: Tensor) -> DecidedPositions:
        """Gathers what a draw may look at."""
        counts_B = decided_BL.sum(-1)
        return DecidedPositions(
            uniforms_M=self.uniforms("token")[decided_BL],
            token_ids_M=self.x_BL[decided_BL],
            step_M=self.step_B.repeat_interleave(counts_B),
            num_steps_M=self.num_steps_B.repeat_interleave(counts_B),
        )


class Sampler(ABC):
    """The rule that picks what to unmask (and remask) at a step. Stateless and pure."""

    confidence: Confidence
    """How this sampler measures how sure the denoiser is of a token."""
    ends_greedily: bool = False
    """True where the last step takes the most likely tokens, whatever the temperature."""

    def times(self, config: SamplerConfig) -> Tensor:
        """Gives the time of the state that each step begins with: [num_steps] float32."""
        return schedule.timesteps(config.num_steps, eps=config.eps)[:-1]

    @abstractmethod
    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds where this step needs the denoiser's distribution.

        Returns:
            [B, L] bool. A row with none keeps its state at this step and needs no forward.
        """

    def draw(
        self, logits_MV: Tensor, *, config: SamplerConfig, positions: DecidedPositions
    ) -> TokenSamples:
        """Draws a token per decided position, from the denoiser's distribution unless overridden.

        Args:
            logits_MV: As for `sample_tokens`, of the same M positions.
            config: As given to `positions_to_decide`.
            positions: What else is known of them.
        """
        return sample_tokens(
            logits_MV,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            confidence=self.confidence,
            uniforms_M=positions.uniforms_M,
            greedy_M=positions.is_last.to(logits_MV.device) if self.ends_greedily else None,
        )

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
        """Takes the step: every drawn token in its place, unless overridden.

        Args:
            rows: As given to `positions_to_decide`; not changed.
            config: Likewise.
            mask_token_id: Likewise.
            decided_BL: What `positions_to_decide` returned for these rows.
            tokens_BL: [B, L] int64 drawn tokens; read where decided only.
            confidence_BL: [B, L] float32; read where decided only, so it may hold anything
                elsewhere.

        Returns:
            [B, L] int64, the next state; a new tensor.
        """
        return torch.where(decided_BL, tokens_BL, rows.x_BL)
