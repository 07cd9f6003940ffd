"""Fast-dLLM v2: block diffusion on Qwen2's layers, predicting the next token."""

from typing import ClassVar

from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from masked_diffusion.families.block import BlockDenoiser
from masked_diffusion.families.info import Alignment


class FastDllmConfig(Qwen2Config):
    """Qwen2's fields under Fast-dLLM's model_type."""

    model_type = "Fast_dLLM_Qwen"


class FastDllmForCausalLM(Qwen2ForCausalLM):
    """Qwen2's layers, one to one."""

    config_class = FastDllmConfig


AutoConfig.register(FastDllmConfig.model_type, FastDllmConfig)
AutoModelForCausalLM.register(FastDllmConfig, FastDllmForCausalLM)


class FastDllm(BlockDenoiser):
    """Fast_dLLM_v2_1.5B/7B; raw row p - 1 predicts token p, across the borders of blocks too.

    The first token of a block is predicted by the last row of the block before it: in sampling a
    finished block, in training that block as it was noised, which is what two streams give. Its
    sub-blocks of 8 are a matter of sampling, not of attention.

    Source: Wu et al., arXiv:2509.26328.
    """

    family = "Fast_dLLM_Qwen"
    config_class = FastDllmConfig
    model_class = FastDllmForCausalLM
    default_alignment: ClassVar[Alignment] = "shifted"
    default_mask_token_id = 151665
    default_block_length = 32
