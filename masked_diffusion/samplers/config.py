"""How a trajectory is sampled: the algorithms and their choices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from masked_diffusion.schedule import DEFAULT_EPS

Algorithm = Literal[
    "origin",
    "maskgit_plus",
    "topk_margin",
    "entropy",
    "p2",
    "low_confidence",
    "random",
    "low_confidence_dynamic",
    "entropy_bounded",
    "ancestral",
    "multinomial",
]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

BLOCK_ALGORITHMS = ("low_confidence", "random", "low_confidence_dynamic", "entropy_bounded")
"""Those that fill a sequence block by block."""

Confidence = Literal[
    "probability", "margin", "negative_entropy", "raw_probability", "raw_negative_entropy"
]
"""How sure the denoiser is of a token; raw = before the draw's temperature and filters."""

MIN_TEMPERATURE = 1e-6
"""Below it, dividing large float32 logits could overflow; 0 (argmax) is what is meant there."""

MAX_GUIDANCE_SCALE = 100.0
"""Far above what is of use; beyond, hidden states would leave the range of float16."""

_USED_BY: Mapping[str, tuple[str, ...]] = {
    "block_length": BLOCK_ALGORITHMS,
    "threshold": ("low_confidence_dynamic",),
    "entropy_bound": ("entropy_bounded",),
}
"""Fields that must be 0 with all other algorithms, where they would do nothing."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a trajectory is sampled. Rows whose configs differ in num_steps alone may share a batch.

    Source: Open-dLLM, `MDMGenerationConfig`; LLaDA, `generate`.
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
    """Time of the schedule's end, in (0, 1); p2 and the block samplers do not use it."""
    suppress_mask_token: bool = True
    """Never draw the mask id. False draws it as often as the denoiser says, as upstream does, and
    a trajectory may then end with masks left. Must be true with ancestral."""
    block_length: int = 0
    """Block samplers: positions of a block, counted from the first open one; 0 = one block, or the
    denoiser's own blocks where it is block-causal."""
    guidance_scale: float = 0.0
    """Classifier-free guidance w, see `masked_diffusion.guidance`; 0 = none. Every step then costs
    two forwards."""
    threshold: float = 0.0
    """low_confidence_dynamic: probability above which a position is unmasked at once, in (0, 1]."""
    entropy_bound: float = 0.0
    """entropy_bounded: bound in nats on the sum of entropies less the largest, at least 0."""

    def __post_init__(self) -> None:
        _require(
            self.algorithm in ALGORITHMS,
            f"algorithm must be one of {', '.join(ALGORITHMS)}",
            repr(self.algorithm),
        )
        _require(self.num_steps >= 1, "num_steps must be at least 1", self.num_steps)
        _require(
            self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf,
            f"temperature must be 0 or at least {MIN_TEMPERATURE}",
            self.temperature,
        )
        _require(
            self.top_p is None or 0 < self.top_p <= 1,
            "top_p must lie in (0, 1] or be None",
            self.top_p,
        )
        _require(
            self.top_k is None or self.top_k >= 0, "top_k must be at least 0 or None", self.top_k
        )
        _require(0 <= self.alg_temp < math.inf, "alg_temp must be at least 0", self.alg_temp)
        _require(0 < self.eps < 1, "eps must lie in (0, 1)", self.eps)
        self._check_choices()

    def _check_choices(self) -> None:
        for name, algorithms in _USED_BY.items():
            value = getattr(self, name)
            _require(
                not value or self.algorithm in algorithms,
                f"{name} must be 0 with algorithm {self.algorithm} (only {', '.join(algorithms)} "
                "would use it)",
                value,
            )
        _require(self.block_length >= 0, "block_length must be at least 0", self.block_length)
        _require(
            0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE,
            f"guidance_scale must be in [0, {MAX_GUIDANCE_SCALE:g}]",
            self.guidance_scale,
        )
        _require(
            self.algorithm != "low_confidence_dynamic" or 0 < self.threshold <= 1,
            "threshold must lie in (0, 1] with algorithm low_confidence_dynamic",
            self.threshold,
        )
        _require(
            0 <= self.entropy_bound < math.inf,
            "entropy_bound must be finite and at least 0",
            self.entropy_bound,
        )
        _require(
            self.suppress_mask_token or self.algorithm != "ancestral",
            "suppress_mask_token must be true with algorithm ancestral, whose posterior knows no "
            "mask in a clean sequence",
            self.suppress_mask_token,
        )

    @property
    def forwards_per_step(self) -> int:
        """Rows of the denoiser's batch that a step of one sequence takes."""
        return 2 if self.guidance_scale > 0 else 1


def _require(condition: bool, allowed: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{allowed}, got {value}")
