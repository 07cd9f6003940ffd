"""What every sampler shares: the rows it works on, and its interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.randomness import keyed_uniforms_batch
from masked_diffusion.samplers.config import Confidence, SamplerConfig


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

    @abstractmethod
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
        """Takes the step.

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
