"""Families: how one kind of checkpoint is loaded and called. One file and one line each."""

from collections.abc import Mapping
from typing import Any

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
from masked_diffusion.families.remote import remote_family
from masked_diffusion.families.roberta import Roberta, XlmRoberta
from masked_diffusion.families.sdar import Sdar, SdarMoe
from masked_diffusion.families.self_test import SelfTestReport, self_test

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

BLOCK_FAMILIES: dict[str, type[Denoiser]] = {
    "a2d-qwen3": Sdar,
}
"""Model types whose checkpoints may have been trained by blocks (BD3LM) without saying so, and the
family of the same layers that they are then: the one that who gives a block length asks for."""


def get_family(model_type: str) -> type[Denoiser]:
    """Looks up a family by the model_type of a config.

    Raises:
        ValueError: unknown model_type; the message lists the known ones.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"unknown model_type {model_type!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def find_family(
    values: Mapping[str, Any],
    model: str,
    *,
    trust_remote_code: bool,
    block_length: int | None = None,
) -> type[Denoiser]:
    """Finds the family of a checkpoint; its own code only where no family of ours fits.

    Args:
        values: Its config.json.
        model: Folder or hub id.
        trust_remote_code: Whether code that the checkpoint brings may be run.
        block_length: As the caller gives it; None = as the checkpoint says.

    Raises:
        ValueError: unknown model_type, and no code of its own that may be run.
    """
    model_type = str(values.get("model_type"))
    if block_length is not None and model_type in BLOCK_FAMILIES:
        return BLOCK_FAMILIES[model_type]
    if model_type not in FAMILIES and trust_remote_code:
        return remote_family(values, model)
    try:
        return get_family(model_type)
    except ValueError as error:
        brings_code = "brings" if "auto_map" in values else "does not bring"
        raise ValueError(
            f"{error}. {model} {brings_code} code of its own (auto_map in config.json), which "
            "--trust-remote-code (trust_remote_code=True) would run with your rights; or save it "
            "in the format of a known model_type"
        ) from error


__all__ = [
    "EXCLUDED_LOGIT",
    "FAMILIES",
    "Denoiser",
    "DenoiserInfo",
    "SelfTestReport",
    "find_family",
    "get_family",
    "padding_mask",
    "self_test",
]
