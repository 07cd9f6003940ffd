"""Samplers: pure step functions, written once for the server, the trainer and evaluation."""

from masked_diffusion.families.info import Noise
from masked_diffusion.samplers.base import ALGORITHMS, RowBatch, Sampler, SamplerConfig
from masked_diffusion.samplers.confidence import ConfidenceSampler
from masked_diffusion.samplers.draw import DecidedPositions, decided_positions, draw_tokens
from masked_diffusion.samplers.multinomial import Multinomial
from masked_diffusion.samplers.origin import Origin
from masked_diffusion.samplers.p2 import P2
from masked_diffusion.samplers.tokens import TokenSamples, sample_tokens

SAMPLERS: dict[str, Sampler] = {
    "origin": Origin(),
    "maskgit_plus": ConfidenceSampler("probability"),
    "topk_margin": ConfidenceSampler("margin"),
    "entropy": ConfidenceSampler("negative_entropy"),
    "p2": P2(),
    "multinomial": Multinomial(),
}
UNIFORM_ALGORITHMS: tuple[str, ...] = ("multinomial",)
"""What samples from a denoiser of uniform noise; the others fill in masks."""


def get_sampler(name: str) -> Sampler:
    """Looks up a sampler by its algorithm's name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown algorithm {name!r}; known: {', '.join(sorted(SAMPLERS))}")
    return SAMPLERS[name]


def algorithms_for(noise: Noise) -> tuple[str, ...]:
    """Lists the algorithms that sample from a denoiser of this noise."""
    return tuple(a for a in ALGORITHMS if (a in UNIFORM_ALGORITHMS) == (noise == "uniform"))


__all__ = [
    "ALGORITHMS",
    "SAMPLERS",
    "DecidedPositions",
    "RowBatch",
    "Sampler",
    "SamplerConfig",
    "TokenSamples",
    "algorithms_for",
    "decided_positions",
    "draw_tokens",
    "get_sampler",
    "sample_tokens",
]
