"""SDAR and TraDo: block diffusion on Qwen3's layers, dense and with experts."""

from typing import ClassVar

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from masked_diffusion.families.block import BlockDenoiser
from masked_diffusion.families.info import Alignment


class SdarConfig(Qwen3Config):
    """Qwen3's fields under SDAR's model_type."""

    model_type = "sdar"


class SdarForCausalLM(Qwen3ForCausalLM):
    """Qwen3's layers, one to one."""

    config_class = SdarConfig


class SdarMoeConfig(Qwen3MoeConfig):
    """Qwen3-MoE's fields under SDAR's model_type."""

    model_type = "sdar_moe"


class SdarMoeForCausalLM(Qwen3MoeForCausalLM):
    """Qwen3-MoE's layers, one to one."""

    config_class = SdarMoeConfig


# Transformers holds a layer's experts in one tensor, and reads published ones by model_type.
register_checkpoint_conversion_mapping(
    SdarMoeConfig.model_type, get_checkpoint_conversion_mapping("qwen3_moe"), overwrite=True
)


for _config, _model in (
    (SdarConfig, SdarForCausalLM),
    (SdarMoeConfig, SdarMoeForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)


class Sdar(BlockDenoiser):
    """SDAR-1.7B/4B/8B and TraDo; raw row p predicts token p.

    Source: Cheng et al., arXiv:2510.06303 (SDAR); the block length is 4 unless the config or the
    caller says otherwise.
    """

    family = "sdar"
    config_class: ClassVar[type[PreTrainedConfig]] = SdarConfig
    model_class: ClassVar[type[PreTrainedModel]] = SdarForCausalLM
    default_alignment: ClassVar[Alignment] = "aligned"
    default_mask_token_id = 151669
    default_block_length = 4


class SdarMoe(Sdar):
    """SDAR-30B-A3B."""

    family = "sdar_moe"
    converts_tensors = True
    config_class = SdarMoeConfig
    model_class = SdarMoeForCausalLM
