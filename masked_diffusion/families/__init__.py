"""Families: how one kind of checkpoint is loaded and called. One file and one line each."""

from masked_diffusion.families.base import EXCLUDED_LOGIT, Denoiser, padding_mask
from masked_diffusion.families.fast_dllm import FastDllm
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.families.llada2 import Llada2Moe
from masked_diffusion.families.qwen2 import Qwen2
from masked_diffusion.families.sdar import Sdar, SdarMoe
from masked_diffusion.families.self_test import self_test

FAMILIES: dict[str, type[Denoiser]] = {
    "Fast_dLLM_Qwen": FastDllm,
    "llada2_moe": Llada2Moe,
    "qwen2": Qwen2,
    "sdar": Sdar,
    "sdar_moe": SdarMoe,
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
