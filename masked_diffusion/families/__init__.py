"""Families: how one kind of checkpoint is loaded and called. One file and one line each."""

from masked_diffusion.families.base import EXCLUDED_LOGIT, Denoiser, padding_mask
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.families.qwen2 import Qwen2
from masked_diffusion.families.self_test import SelfTestReport, self_test

FAMILIES: dict[str, type[Denoiser]] = {
    "qwen2": Qwen2,
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
    "SelfTestReport",
    "get_family",
    "padding_mask",
    "self_test",
]
