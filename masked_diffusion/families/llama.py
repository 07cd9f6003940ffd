"""Llama as a denoiser: DiffuLLaMA, and what is saved of LLaDA and its kin."""

from typing import ClassVar

from transformers import LlamaConfig, LlamaForCausalLM

from masked_diffusion.families.decoder import CausalDecoder
from masked_diffusion.families.info import Alignment


class Llama(CausalDecoder):
    """A Llama decoder that attends in both directions; raw row p - 1 predicts token p.

    DiffuLLaMA took an ordinary id of Llama 2 as its mask, 811, which neither its config nor its
    tokenizer names: pass mask_token_id. Its training code saves the body as `denoise_model`, with
    the embedding beside it; both forms are read.
    """

    family = "llama"
    config_class = LlamaConfig
    model_class = LlamaForCausalLM
    default_alignment: ClassVar[Alignment] = "shifted"
    key_mapping: ClassVar = {
        r"^denoise_model\.": "model.",
        r"^embed_tokens\.": "model.embed_tokens.",
    }
