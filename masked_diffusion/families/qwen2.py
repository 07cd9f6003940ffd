"""Qwen2 as a denoiser: Open-dCoder checkpoints, and what is saved of Dream and its kin."""

from typing import ClassVar

from transformers import Qwen2Config, Qwen2ForCausalLM

from masked_diffusion.families.decoder import CausalDecoder
from masked_diffusion.families.info import Alignment


class Qwen2(CausalDecoder):
    """A Qwen2 decoder that attends in both directions; raw row p - 1 predicts token p.

    Open-dCoder's mask token `<M>` is an added token of the tokenizer that neither the tokenizer
    nor the config declares as the mask.
    """

    family = "qwen2"
    config_class = Qwen2Config
    model_class = Qwen2ForCausalLM
    default_alignment: ClassVar[Alignment] = "shifted"
