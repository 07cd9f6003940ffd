"""Qwen3 as a denoiser."""

from typing import ClassVar

from transformers import Qwen3Config, Qwen3ForCausalLM

from masked_diffusion.families.decoder import CausalDecoder
from masked_diffusion.families.info import Alignment


class Qwen3(CausalDecoder):
    """A Qwen3 decoder that attends in both directions; raw row p predicts token p.

    Aligned by default because every published masked-diffusion model on Qwen3 is (A2D, SDAR). One
    that was trained in Open-dLLM's manner is shifted: pass alignment, or write
    logit_alignment into its config.
    """

    family = "qwen3"
    config_class = Qwen3Config
    model_class = Qwen3ForCausalLM
    default_alignment: ClassVar[Alignment] = "aligned"
