"""Low-rank adapters on the student's linear layers, through peft, and how they are merged."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from masked_diffusion.families import Denoiser
from student_trainer.train_options import UpdateOptions

_ADAPTER = "default"
_ALL_LINEAR = "all-linear"
_MARK, _BASE = "lora_", "base_layer"
"""In names of adapters' parameters, and of what peft puts in place of a layer."""
_SEED = 0


def add_adapters(denoiser: Denoiser, options: UpdateOptions) -> None:
    """Freezes the student and adds adapters, if options.lora_rank asks for them.

    Raises:
        ValueError: peft is missing, or no layer has such a name.
    """
    if not options.lora_rank:
        return
    try:
        # Optional, and slow to import.
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("train.lora_rank needs peft; pip install peft, or set 0") from error
    targets = options.lora_target_modules
    layers = _linear_layers(denoiser)
    names = layers if targets == [_ALL_LINEAR] else _named(targets, layers)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type] # a float is fine too
        lora_dropout=options.lora_dropout,
        target_modules=sorted(names),
        # GPT-2's layers hold their matrix the other way round.
        fan_in_fan_out=all(isinstance(layers[name], Conv1D) for name in names),
    )
    with torch.random.fork_rng(devices=[]):
        # All ranks begin with the same adapters, and so does a run that goes on.
        torch.manual_seed(_SEED)
        inject_adapter_in_model(config, denoiser.model, adapter_name=_ADAPTER)
    for name, parameter in denoiser.model.named_parameters():
        parameter.requires_grad_(_MARK in name)


def merge_adapters(weights: Mapping[str, Tensor], denoiser: Denoiser) -> dict[str, Tensor]:
    """The weights of the student as it was before `add_adapters`, with what those learned.

    Args:
        weights: whole, by the names they have with adapters.
    """
    merged = {
        name.replace(f".{_BASE}.", "."): weight
        for name, weight in weights.items()
        if _MARK not in name
    }
    for name, layer in denoiser.model.named_modules():
        prefix = f"{name}.lora_"
        if f"{prefix}A.{_ADAPTER}.weight" not in weights:
            continue
        down_RD = weights[f"{prefix}A.{_ADAPTER}.weight"].float()
        up_DR = weights[f"{prefix}B.{_ADAPTER}.weight"].float()
        delta_DD = layer.scaling[_ADAPTER] * (up_DR @ down_RD)
        base_DD = merged[f"{name}.weight"]
        change = delta_DD.T if layer.fan_in_fan_out else delta_DD
        merged[f"{name}.weight"] = (base_DD.float() + change).to(base_DD.dtype)
    return merged


def _linear_layers(denoiser: Denoiser) -> dict[str, nn.Module]:
    """The linear layers within the blocks, by their names in the model."""
    inner = {id(module) for block in denoiser.blocks for module in block.modules()}
    return {
        name: module
        for name, module in denoiser.model.named_modules()
        if id(module) in inner and isinstance(module, nn.Linear | Conv1D)
    }


def _named(targets: Iterable[str], layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers whose names end in one of the targets."""
    known = sorted({name.rpartition(".")[2] for name in layers})
    found = []
    for target in targets:
        names = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not names:
            raise ValueError(
                f"train.lora_target_modules names {target!r}, which no linear layer of the blocks "
                f"is called; known: {_ALL_LINEAR}, {', '.join(known)}"
            )
        found += names
    return found
