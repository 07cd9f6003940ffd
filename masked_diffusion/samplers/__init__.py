"""Samplers: pure step functions, written once for the server, the trainer and evaluation."""

from masked_diffusion.samplers.base import ALGORITHMS, RowBatch, Sampler, SamplerConfig
from masked_diffusion.samplers.confidence import ConfidenceSampler
from masked_diffusion.samplers.origin import Origin
from masked_diffusion.samplers.p2 import P2
from masked_diffusion.samplers.tokens import TokenSamples, sample_tokens

SAMPLERS: dict[str, Sampler] = {
    "origin": Origin(),
    "maskgit_plus": ConfidenceSampler("probability"),
    "topk_margin": ConfidenceSampler("margin"),
    "entropy": ConfidenceSampler("negative_entropy"),
    "p2": P2(),
}


def get_sampler(name: str) -> Sampler:
    """Looks up a sampler by its algorithm's name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown algorithm {name!r}; known: {', '.join(sorted(SAMPLERS))}")
    return SAMPLERS[name]


__all__ = [
    "ALGORITHMS",
    "SAMPLERS",
    "RowBatch",
    "Sampler",
    "SamplerConfig",
    "TokenSamples",
    "get_sampler",
    "sample_tokens",
]
