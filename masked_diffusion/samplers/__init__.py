"""Samplers: pure step functions, written once for the server, the trainer and evaluation."""

from masked_diffusion.samplers.ancestral import Ancestral
from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.confidence import ConfidenceSampler
from masked_diffusion.samplers.config import ALGORITHMS, SamplerConfig
from masked_diffusion.samplers.decisions import Decisions, decide
from masked_diffusion.samplers.draw import DecidedPositions
from masked_diffusion.samplers.entropy_bounded import EntropyBounded
from masked_diffusion.samplers.fit import UNIFORM_ALGORITHMS, algorithms_for, check_fits
from masked_diffusion.samplers.low_confidence import LowConfidence
from masked_diffusion.samplers.low_confidence_dynamic import LowConfidenceDynamic
from masked_diffusion.samplers.multinomial import Multinomial
from masked_diffusion.samplers.origin import Origin
from masked_diffusion.samplers.p2 import P2
from masked_diffusion.samplers.random_order import RandomOrder
from masked_diffusion.samplers.tokens import TokenSamples, sample_tokens

SAMPLERS: dict[str, Sampler] = {
    "origin": Origin(),
    "maskgit_plus": ConfidenceSampler("probability"),
    "topk_margin": ConfidenceSampler("margin"),
    "entropy": ConfidenceSampler("negative_entropy"),
    "p2": P2(),
    "low_confidence": LowConfidence(),
    "random": RandomOrder(),
    "low_confidence_dynamic": LowConfidenceDynamic(),
    "entropy_bounded": EntropyBounded(),
    "ancestral": Ancestral(),
    "multinomial": Multinomial(),
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
    "UNIFORM_ALGORITHMS",
    "DecidedPositions",
    "Decisions",
    "RowBatch",
    "Sampler",
    "SamplerConfig",
    "TokenSamples",
    "algorithms_for",
    "check_fits",
    "decide",
    "get_sampler",
    "sample_tokens",
]
