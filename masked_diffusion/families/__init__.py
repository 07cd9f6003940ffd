"""Families: how one kind of checkpoint is loaded and called. One file and one line each."""

from masked_diffusion.families.a2d import A2DLlama, A2DQwen2, A2DQwen3
from masked_diffusion.families.base import EXCLUDED_LOGIT, Denoiser, padding_mask
from masked_diffusion.families.bert import Bert
from masked_diffusion.families.dream import Dream
from masked_diffusion.families.fast_dllm import FastDllm
from masked_diffusion.families.gpt2 import GPT2
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.families.llada import LLaDA
from masked_diffusion.families.llada2 import Llada2Moe
from masked_diffusion.families.llama import Llama
from masked_diffusion.families.mdlm import Mdlm
from masked_diffusion.families.modernbert import ModernBert
from masked_diffusion.families.qwen2 import Qwen2
from masked_diffusion.families.qwen3 import Qwen3
from masked_diffusion.families.roberta import Roberta, XlmRoberta
from masked_diffusion.families.sdar import Sdar, SdarMoe
from masked_diffusion.families.self_test import self_test

FAMILIES: dict[str, type[Denoiser]] = {
    "Dream": Dream,
    "Fast_dLLM_Qwen": FastDllm,
    "a2d-llama": A2DLlama,
    "a2d-qwen2": A2DQwen2,
    "a2d-qwen3": A2DQwen3,
    "bert": Bert,
    "gpt2": GPT2,
    "llada": LLaDA,
    "llada2_moe": Llada2Moe,
    "llama": Llama,
    "mdlm": Mdlm,
    "modernbert": ModernBert,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "roberta": Roberta,
    "sdar": Sdar,
    "sdar_moe": SdarMoe,
    "xlm-roberta": XlmRoberta,
}


def get_family(model_type: str) -> type[Denoiser]:
    """Looks up a family by the model_type of a config.

    Raises:
        ValueError: unknown model_type; the message lists the known ones.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"unknown model_type {model_type!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


__all__ = [
    "EXCLUDED_LOGIT",
    "FAMILIES",
    "Denoiser",
    "DenoiserInfo",
    "get_family",
    "padding_mask",
    "self_test",
]
