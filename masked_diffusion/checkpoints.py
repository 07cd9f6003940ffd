"""Denoisers as Hugging Face folders: loaded, made anew, saved, and named by their content."""

import copy
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from masked_diffusion import pretrained
from masked_diffusion.adapters import merge_adapter
from masked_diffusion.blueprint import Blueprint, read_blueprint
from masked_diffusion.digests import tensors_digest, tokenizer_fingerprint, weights_digest
from masked_diffusion.families import Denoiser, get_family, self_test
from masked_diffusion.families.alignment_probe import probe_alignment
from masked_diffusion.families.info import Alignment, find_mask_token_id
from masked_diffusion.quantization import is_quantized, quantization_config
from masked_diffusion.tensor_parallel import distributed_config, world_size

logger = logging.getLogger(__name__)

CHECKPOINT_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
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
    block_length: int | None = None,
    adapters: Sequence[str] = (),
    quantization: str | None = None,
    tensor_parallel: bool = False,
) -> Denoiser:
    """Loads a checkpoint from a folder or the hub, ready to denoise (evaluation mode).

    Weights come from safetensors only, and embeddings are never resized. The tokenizer is
    optional where config.mask_token_id is set.

    Args:
        model: Path of a folder, or hub id.
        device: Where to.
        dtype: Of the weights; None keeps what was saved.
        trust_remote_code: Run code that the checkpoint brings: its tokenizer's, and the model's
            where its model_type is no family of ours.
        run_self_test: Proves attention, invisible padding and alignment first; see `self_test`.
        mask_token_id: Overrides what config and tokenizer say.
        alignment: Overrides what the config or the family says.
        block_length: Positions of a block, for block diffusion; overrides likewise.
        adapters: Folders or hub ids of peft adapters, merged in this order.
        quantization: Key of `masked_diffusion.quantization.QUANTIZATIONS`.
        tensor_parallel: Split the layers over the ranks of torch.distributed, which must all call
            this; from then on they must all run every forward, and `weights_digest`, together.

    Raises:
        ValueError: no such folder or hub id, unknown model_type, no mask id, no safetensors,
            missing tensors, an alignment that nobody knows, an adapter or a quantization that
            cannot be had, or a failed self-test. The message says how to mend it.
    """
    device = torch.device(device)
    blueprint = read_blueprint(
        model,
        trust_remote_code=trust_remote_code,
        mask_token_id=mask_token_id,
        alignment=alignment,
        block_length=block_length,
    )
    weights = _load_weights(
        blueprint,
        device=device,
        dtype=dtype,
        adapters=adapters,
        quantization=quantization,
        tensor_parallel=tensor_parallel,
    )
    denoiser = _denoiser_of(blueprint, weights)
    if blueprint.alignment_source == "unknown":
        denoiser = _find_alignment(blueprint, denoiser)
    if run_self_test:
        logger.info("self-test model=%s %s", blueprint.name, self_test(denoiser))
    return denoiser


def _load_weights(
    blueprint: Blueprint,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    adapters: Sequence[str],
    quantization: str | None,
    tensor_parallel: bool,
) -> PreTrainedModel:
    if quantization is not None and adapters:
        raise ValueError(
            "quantization cannot be combined with adapters; save the model with its adapters "
            "merged (save_denoiser), then load that quantized"
        )
    if tensor_parallel and (quantization is not None or adapters):
        raise ValueError(
            "tensor parallelism cannot be combined with adapters or quantization; merge the "
            "adapters first (save_denoiser), and serve quantized weights on one device"
        )
    shares = None
    if tensor_parallel:
        shares = distributed_config(blueprint.build_on_meta(), num_ranks=world_size())
    config = None
    if quantization is not None:
        config = quantization_config(quantization, blueprint.build_on_meta(), device)
    weights = pretrained.load_weights(
        blueprint.name,
        blueprint.family.model_class,
        blueprint.config,
        dtype=dtype,
        key_mapping=blueprint.family.key_mapping,
        device=device,
        quantization_config=config,
        distributed_config=shares,
    )
    for adapter in adapters:
        weights = merge_adapter(weights, adapter)
    return weights


def _denoiser_of(blueprint: Blueprint, weights: PreTrainedModel) -> Denoiser:
    denoiser = _wrap(
        blueprint.family,
        weights,
        blueprint.tokenizer,
        name=blueprint.name,
        mask_token_id=blueprint.mask_token_id,
    ).eval()
    head = denoiser.head_weight.data
    if not head.is_floating_point() or is_traceable_wrapper_subclass(head):
        raise ValueError(
            f"the head of {blueprint.name} is quantized, and clients could not apply it; give a "
            "checkpoint that leaves the head out of quantization"
        )
    denoiser.settle()
    return denoiser


def _find_alignment(blueprint: Blueprint, denoiser: Denoiser) -> Denoiser:
    """The denoiser, aligned as it was trained: for code that no family of ours knows."""
    probe = probe_alignment(denoiser)
    if probe.verdict == "inconclusive":
        raise ValueError(
            f"nobody knows how the outputs of {blueprint.name} stand to tokens, and a probe is "
            f"{probe}; give --alignment aligned (row p predicts token p) or --alignment shifted "
            "(row p - 1 does)"
        )
    logger.info("alignment model=%s found=%s", blueprint.name, probe)
    blueprint.config.logit_alignment = probe.verdict
    denoiser.model.config.logit_alignment = probe.verdict
    return _denoiser_of(blueprint, denoiser.model)


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
    mask_token_id = find_mask_token_id(
        config,
        tokenizer,
        name=name,
        mask_token_id=mask_token_id,
        default=family.default_mask_token_id,
    )
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
        ValueError: the folder holds something else than a checkpoint, or is a file; or the
            weights are quantized, which are for serving.
    """
    if is_quantized(denoiser.model):
        raise ValueError(
            f"quantized weights of {denoiser.info.name} are for serving and are not saved; load "
            "it without quantization"
        )
    folder = Path(folder).resolve()
    _refuse_foreign_files(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        # By default a model is saved under the names that it was loaded from; the config that is
        # saved beside it belongs to transformers' own.
        denoiser.model.save_pretrained(
            fresh,
            state_dict=None if weights is None else dict(weights),
            save_original_format=False,
        )
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
