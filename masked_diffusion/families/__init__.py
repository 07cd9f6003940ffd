"""Families: how one kind of checkpoint is loaded and called. One file and one line each."""

from collections.abc import Mapping
from typing import Any

from masked_diffusion.families.base import EXCLUDED_LOGIT, Denoiser, padding_mask
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.families.qwen2 import Qwen2
from masked_diffusion.families.remote import remote_family
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


def find_family(
    values: Mapping[str, Any], model: str, *, trust_remote_code: bool
) -> type[Denoiser]:
    """Finds the family of a checkpoint; its own code only where no family of ours fits.

    Args:
        values: Its config.json.
        model: Folder or hub id.
        trust_remote_code: Whether code that the checkpoint brings may be run.

    Raises:
        ValueError: unknown model_type, and no code of its own that may be run.
    """
    model_type = str(values.get("model_type"))
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
