"""Teachers of the serving bench: the architecture of Open-dCoder with random weights."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from masked_diffusion.families import Denoiser
from masked_diffusion.families.qwen2 import Qwen2


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a Qwen2. Speed does not depend on what the weights are."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    max_length: int = 512

    @property
    def mask_token_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1

    def as_json(self) -> dict[str, Any]:
        """To pass to a child process."""
        return asdict(self)


SIZES: dict[str, ModelSize] = {
    "demo": ModelSize(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=2,
    ),
    "100m": ModelSize(
        vocab_size=151_936,
        hidden_size=512,
        intermediate_size=1536,
        num_layers=8,
        num_heads=8,
        num_key_value_heads=2,
    ),
    "open-dcoder-0.5b": ModelSize(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_key_value_heads=2,
    ),
}


def build(size: ModelSize) -> Denoiser:
    """A denoiser with random weights, always the same."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_key_value_heads,
        max_position_embeddings=size.max_length,
        tie_word_embeddings=True,
    )
    config.logit_alignment = "shifted"
    Qwen2.prepare_config(config)
    model = Qwen2ForCausalLM(config)
    denoiser = Qwen2(model, None, name="bench", mask_token_id=size.mask_token_id)
    return denoiser.eval().requires_grad_(False)
