"""Adapters (LoRA and its kin) merged into the weights they were trained on, through `peft`."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import cached_file

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def merge_adapter(weights: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Merges one adapter for good, as if its base had been trained so.

    Args:
        weights: The base; changed in place.
        adapter: Folder or hub id of an adapter saved by peft as safetensors.

    Raises:
        ValueError: peft is not installed, no adapter there, pickled, or made for another base:
            a module or tensor of it has no place in `weights`, or another shape.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapters need the package peft: pip install peft")
    from peft import PeftConfig, get_peft_model  # noqa: PLC0415  (optional, slow)
    from peft.utils import load_peft_weights, set_peft_model_state_dict  # noqa: PLC0415

    folder = _adapter_folder(adapter)
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            # It warns that weights come from elsewhere than the config's name of the base says.
            warnings.simplefilter("ignore")
            adapted = get_peft_model(weights, config)
            tensors = load_peft_weights(folder, device=str(weights.device))
            report: Any = set_peft_model_state_dict(adapted, tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(_wrong_base(adapter, config, " ".join(str(error).split()))) from error
    strangers = sorted(report.unexpected_keys)
    unfilled = sorted(key for key in report.missing_keys if f".{_ADAPTER_NAME}" in key)
    if strangers or unfilled:
        odd = (strangers or unfilled)[0]
        raise ValueError(_wrong_base(adapter, config, f"{odd} has no counterpart"))
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


_ADAPTER_NAME = "default"


def _wrong_base(adapter: str, config: object, reason: str) -> str:
    base = getattr(config, "base_model_name_or_path", None)
    return (
        f"the adapter {adapter} does not fit this model: {reason}; it was trained on "
        f"{base or 'a base that it does not name'}"
    )


def _adapter_folder(adapter: str) -> str:
    """Finds an adapter's files, in a folder or in the hub's cache; refuses what is pickled."""
    adapter = os.path.expanduser(adapter)
    if Path(adapter).is_dir():
        missing = [n for n in (CONFIG_FILE, WEIGHTS_FILE) if not (Path(adapter) / n).is_file()]
        if missing:
            raise ValueError(
                f"the adapter {adapter} holds no {missing[0]}; give a folder saved by peft, with "
                "safetensors: pickled ones are refused because loading them can run code"
            )
        return adapter
    try:
        config = cached_file(adapter, CONFIG_FILE)
        cached_file(adapter, WEIGHTS_FILE)
    except OSError as error:
        raise ValueError(
            f"cannot read the adapter {adapter!r}: no such folder, and the Hugging Face hub does "
            f"not give its {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    assert config is not None
    return str(Path(config).parent)
