"""A2D models of the dllm library: autoregressive models turned into aligned denoisers.

Their tensors and config fields are those of the model they were made from. The mask token
`<|mask|>` is added to the tokenizer, which declares it.
"""

from typing import ClassVar

from masked_diffusion.families.info import Alignment
from masked_diffusion.families.llama import Llama
from masked_diffusion.families.qwen2 import Qwen2
from masked_diffusion.families.qwen3 import Qwen3


class A2DQwen3(Qwen3):
    """Qwen3 by A2D; raw row p predicts token p."""

    family = "a2d-qwen3"


class A2DQwen2(Qwen2):
    """Qwen2 by A2D; raw row p predicts token p, other than with Open-dCoder."""

    family = "a2d-qwen2"
    default_alignment: ClassVar[Alignment] = "aligned"


class A2DLlama(Llama):
    """Llama by A2D; raw row p predicts token p, other than with DiffuLLaMA."""

    family = "a2d-llama"
    default_alignment: ClassVar[Alignment] = "aligned"
