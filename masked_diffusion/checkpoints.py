"""Denoisers as Hugging Face folders: loaded, made anew, saved, and named by their content."""

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from masked_diffusion import pretrained
from masked_diffusion.digests import tensors_digest, tokenizer_fingerprint, weights_digest
from masked_diffusion.families import Denoiser, get_family, self_test
from masked_diffusion.families.info import Alignment, find_mask_token_id

CHECKPOINT_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
"""What a saved denoiser consists of; a folder with anything else in it is never replaced."""


def load_denoiser(
    model: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    run_self_test: bool = True,
    mask_token_id: int | None = None,
    alignment: Alignment | None = None,
) -> Denoiser:
    """Loads a checkpoint from a folder or the hub, ready to denoise (evaluation mode).

    Weights come from safetensors only, and embeddings are never resized. The tokenizer is
    optional where config.mask_token_id is set.

    Args:
        model: Path of a folder, or hub id.
        device: Where to.
        dtype: Of the weights; None keeps what was saved.
        trust_remote_code: For the tokenizer; models are always transformers' own classes.
        run_self_test: Proves full attention and invisible padding first.
        mask_token_id: Overrides what config and tokenizer say.
        alignment: Overrides what the config or the family says.

    Raises:
        ValueError: no such folder or hub id, unknown model_type, no mask id, no safetensors,
            missing tensors, or a failed self-test. The message says how to mend it.
    """
    model = os.path.expanduser(model)
    config_dict = pretrained.read_config_dict(model)
    family = get_family(str(config_dict.get("model_type")))
    config = family.read_config(config_dict)
    tokenizer = pretrained.load_tokenizer(model, config, trust_remote_code=trust_remote_code)
    mask_token_id = find_mask_token_id(
        config,
        tokenizer,
        name=model,
        mask_token_id=mask_token_id,
        default=family.default_mask_token_id,
    )
    if alignment is not None:
        config.logit_alignment = alignment
    family.prepare_config(config)
    weights = pretrained.load_weights(
        model, family.model_class, config, dtype=dtype, key_mapping=family.key_mapping
    )
    denoiser = _wrap(family, weights, tokenizer, name=model, mask_token_id=mask_token_id)
    denoiser.to(device).eval()
    if run_self_test:
        self_test(denoiser)
    return denoiser


def new_denoiser(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seed: int,
    mask_token_id: int | None = None,
) -> Denoiser:
    """Makes a denoiser with random weights, in training mode, on the CPU.

    Args:
        config: Of a known family; copied, not changed.
        tokenizer: May be None where the mask id is given or in the config.
        seed: Of the initialisation; the global generator is left as it was.
        mask_token_id: Overrides what config and tokenizer say.

    Raises:
        ValueError: unknown model_type or no mask id.
    """
    family = get_family(config.model_type)
    config = copy.deepcopy(config)
    name = f"a new {config.model_type}"
    mask_token_id = find_mask_token_id(config, tokenizer, name=name, mask_token_id=mask_token_id)
    family.prepare_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.model_class(config)
    return _wrap(family, model, tokenizer, name=name, mask_token_id=mask_token_id).train()


def save_denoiser(
    denoiser: Denoiser,
    folder: str | os.PathLike[str],
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Saves an ordinary Hugging Face folder: safetensors, config and tokenizer.

    The config says what the reader cannot guess: mask_token_id, logit_alignment and
    is_causal = false. The folder is written beside its place and then renamed, so nobody sees
    half of it; an older checkpoint there is replaced.

    Args:
        weights: Instead of the denoiser's own, which may be one rank's share; tied ones once.

    Raises:
        ValueError: the folder holds something else than a checkpoint, or is a file.
    """
    folder = Path(folder).resolve()
    _refuse_foreign_files(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        denoiser.model.save_pretrained(fresh, state_dict=None if weights is None else dict(weights))
        if denoiser.tokenizer is not None:
            denoiser.tokenizer.save_pretrained(fresh)
        _share_mode(fresh)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)


def _share_mode(folder: Path) -> None:
    """Gives every file the mode of the config.

    safetensors makes its own readable by the owner alone, and a server often runs as another user
    than the trainer.
    """
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def head_digest(denoiser: Denoiser) -> str:
    """Digests the output projection and its bias, padded rows included."""
    return tensors_digest(weight=denoiser.head_weight, bias=denoiser.head_bias)


def _wrap(
    family: type[Denoiser],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    mask_token_id: int,
) -> Denoiser:
    denoiser = family(model, tokenizer, name=name, mask_token_id=mask_token_id)
    model.config.mask_token_id = mask_token_id
    model.config.logit_alignment = denoiser.info.alignment
    return denoiser


def _refuse_foreign_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cannot save a checkpoint to {folder}: it is a file")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    foreign = [n for n in names if not any(Path(n).match(known) for known in CHECKPOINT_FILES)]
    if foreign:
        raise ValueError(
            f"cannot replace {folder}: {foreign[0]!r} is not part of a checkpoint; give a new or "
            "empty folder"
        )


__all__ = [
    "head_digest",
    "load_denoiser",
    "new_denoiser",
    "save_denoiser",
    "tokenizer_fingerprint",
    "weights_digest",
]
