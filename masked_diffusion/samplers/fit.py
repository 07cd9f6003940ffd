"""Which samplers a denoiser can be sampled with."""

from masked_diffusion.families.info import DenoiserInfo, Noise
from masked_diffusion.samplers.config import ALGORITHMS, SamplerConfig

UNIFORM_ALGORITHMS: tuple[str, ...] = ("multinomial",)
"""What samples from a denoiser of uniform noise; the others fill in masks."""


def algorithms_for(noise: Noise) -> tuple[str, ...]:
    """Lists the algorithms that sample from a denoiser of this noise."""
    return tuple(a for a in ALGORITHMS if (a in UNIFORM_ALGORITHMS) == (noise == "uniform"))


def check_fits(config: SamplerConfig, info: DenoiserInfo) -> None:
    """Refuses choices that the denoiser cannot honour.

    Raises:
        ValueError: beginning with the field's name.
    """
    offered = algorithms_for(info.noise)
    if config.algorithm not in offered:
        raise ValueError(
            f"algorithm must be one of {', '.join(offered)} for {info.noise} noise, got "
            f"{config.algorithm!r}"
        )
    if not config.suppress_mask_token and info.noise == "uniform":
        raise ValueError(
            "suppress_mask_token must be true with a denoiser of uniform noise, whose sequences "
            "never hold the mask id, got false"
        )
    if config.block_length and info.attention == "block_causal":
        raise ValueError(
            f"block_length must be 0 with a block-causal denoiser, whose blocks of "
            f"{info.block_length} positions are the only choice, got {config.block_length}"
        )
    if config.guidance_scale and info.noise == "uniform":
        raise ValueError(
            "guidance_scale must be 0 with a denoiser of uniform noise, which has no mask to hide "
            f"the given tokens behind, got {config.guidance_scale}"
        )
