"""What every sampler shares: its configuration, the rows it works on, and its protocol."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from torch import Tensor

from masked_diffusion.randomness import keyed_uniforms_batch
from masked_diffusion.schedule import DEFAULT_EPS

Algorithm = Literal["origin", "maskgit_plus", "topk_margin", "entropy", "p2", "multinomial"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

Confidence = Literal["probability", "margin", "negative_entropy"]

MIN_TEMPERATURE = 1e-6
"""Below it, dividing large float32 logits could overflow; 0 (argmax) is what is meant there."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a trajectory is sampled. Rows whose configs differ in num_steps alone may share a batch.

    Source: Open-dLLM, `MDMGenerationConfig`.
    """

    algorithm: str
    """One of ALGORITHMS."""
    num_steps: int
    """Denoising steps of the trajectory, at least 1."""
    temperature: float = 0.0
    """Divides the logits before filtering; 0 takes the most likely token."""
    top_p: float | None = None
    """Nucleus: keep the likeliest ids up to this mass, in (0, 1]; None and 1 keep all."""
    top_k: int | None = None
    """Keep ids at least as likely as the k-th (ties stay); None and 0 keep all."""
    alg_temp: float = 0.0
    """Gumbel temperature on confidences; used by maskgit_plus, topk_margin and entropy only."""
    eps: float = DEFAULT_EPS
    """Time of the schedule's end, in (0, 1); p2 does not use it."""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}"
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be 0 or at least {MIN_TEMPERATURE}, got {self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1] or be None, got {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 or None, got {self.top_k}")
        if not 0 <= self.alg_temp < math.inf:
            raise ValueError(f"alg_temp must be at least 0, got {self.alg_temp}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie in (0, 1), got {self.eps}")


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


class Sampler(Protocol):
    """The rule that picks what to unmask (and remask) at a step. Stateless and pure."""

    @property
    def confidence(self) -> Confidence:
        """How sure the denoiser is of a token, as this sampler measures it."""
        ...

    def positions_to_decide(
        self, rows: RowBatch, config: SamplerConfig, *, mask_token_id: int
    ) -> Tensor:
        """Finds where this step needs the denoiser's distribution.

        Returns:
            [B, L] bool. A row with none keeps its state at this step and needs no forward.
        """
        ...

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
        ...
