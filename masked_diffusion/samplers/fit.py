"""Which samplers a denoiser can be sampled with."""

from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.samplers.config import SamplerConfig


def check_fits(config: SamplerConfig, info: DenoiserInfo) -> None:
    """Refuses choices that the denoiser cannot honour.

    Raises:
        ValueError: beginning with the field's name.
    """
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
