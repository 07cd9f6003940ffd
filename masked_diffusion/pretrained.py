"""Reads the parts of a Hugging Face folder or hub id; every failure says how to mend it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.distributed import DistributedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
GENERIC_TOKENIZER_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
NATIVE_TOKENIZER_CLASSES: Mapping[str, type[PreTrainedTokenizerBase]] = {
    "DreamTokenizer": Qwen2Tokenizer,
    "MaskTokenWrapper": GPT2Tokenizer,
}
"""transformers' own class for one that a published folder names and ships as code, or not at all.

Vocabulary, merges, added and special tokens and the chat template are data, which both read.
"""


def read_config_dict(model: str) -> dict[str, Any]:
    """Reads config.json without needing a class for its model_type.

    Raises:
        ValueError: no such folder, no config in it, or a hub id that cannot be read.
    """
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"{model} holds no config.json; give a folder saved in Hugging Face format"
        )
    if not path.is_dir() and _is_path(model):
        raise ValueError(
            f"no such folder: {model}; give the path of a folder saved in Hugging Face format "
            "(config.json, *.safetensors), or a hub id such as org/name"
        )
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(model)
    except OSError as error:
        raise ValueError(
            f"cannot read the model {model!r}: there is no such folder, and the Hugging Face hub "
            "does not give it; check the spelling and the network, or give the path of a folder "
            f"saved in Hugging Face format ({_first_line(error)})"
        ) from error
    return dict(config_dict)


def _is_path(model: str) -> bool:
    """Tells a missing path from a hub id, which the hub client would retry for 20 s and more."""
    path = Path(model)
    has_local_parent = len(path.parts) > 1 and path.parent.is_dir()
    looks_like_path = model.count("/") > 1 or model.startswith((".", "/"))
    return path.exists() or has_local_parent or looks_like_path


def load_tokenizer(
    model: str, config: PreTrainedConfig, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase | None:
    """Loads the tokenizer; None for a folder without tokenizer files."""
    path = Path(model)
    if path.is_dir() and not any((path / name).exists() for name in TOKENIZER_FILES):
        return None
    class_name = str(get_tokenizer_config(model).get("tokenizer_class"))
    if class_name in NATIVE_TOKENIZER_CLASSES:
        tokenizer = NATIVE_TOKENIZER_CLASSES[class_name].from_pretrained(model)
        # Else an export would name the code of the published repository.
        tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer
    if class_name in GENERIC_TOKENIZER_CLASSES:
        # AutoTokenizer goes by the model type here: transformers 5.23 puts Qwen2's own splitting
        # and normalisation in place of what tokenizer.json says, and encodes text differently.
        return PreTrainedTokenizerFast.from_pretrained(model)
    return AutoTokenizer.from_pretrained(model, config=config, trust_remote_code=trust_remote_code)


def load_weights(
    model: str,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None,
    key_mapping: Mapping[str, str],
    device: torch.device | None = None,
    quantization_config: object = None,
    distributed_config: DistributedConfig | None = None,
) -> PreTrainedModel:
    """Builds the model and fills it from safetensors, shard by shard.

    Args:
        model: Folder or hub id.
        model_class: One of transformers' own.
        config: Of the model, as adjusted by its family.
        dtype: Of the weights; None keeps what was saved.
        key_mapping: Regular expression in a tensor's name on disk -> its name in the model.
        device: Where each tensor goes at once, so that the host never holds them all; None = CPU.
        quantization_config: Of one of transformers' quantizers.
        distributed_config: How the ranks share the layers; it places them, not `device`.

    Raises:
        ValueError: no safetensors, or a tensor is missing (transformers would make it up).
    """
    placement: dict[str, Any] = {"device_map": device or "cpu"}
    if distributed_config is not None:
        placement = {"distributed_config": distributed_config}
    if quantization_config is not None:
        placement["quantization_config"] = quantization_config
    try:
        loaded = model_class.from_pretrained(
            model,
            config=config,
            dtype="auto" if dtype is None else dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            key_mapping=dict(key_mapping) or None,
            output_loading_info=True,
            **placement,
        )
    except OSError as error:
        raise ValueError(
            f"{model} has no readable safetensors weights; pickled checkpoints are refused because "
            "loading them can run code: convert them with save_pretrained "
            f"({_first_line(error)})"
        ) from error
    pretrained, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{model} lacks {len(missing)} tensors of its architecture, {missing[0]} first; "
            "the checkpoint is incomplete or its config belongs to another one"
        )
    return pretrained


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
