"""Quantized weights, by transformers' own quantizers: a table of what can be asked for, and where.

Only matrices of the body are quantized. The head stays as it is, since clients fetch it to turn
hidden states into logits, and so do embeddings.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BitsAndBytesConfig, FineGrainedFP8Config, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from masked_diffusion.families import Denoiser

INT4_GROUP_SIZE = 32
"""Weights of a row that share one scale."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One way to store weights in fewer bits."""

    make_config: Callable[[Sequence[str], torch.device], QuantizationConfigMixin]
    """(names of modules to leave alone, device) -> what from_pretrained takes."""
    package: str | None
    """That computes with them; None where transformers does."""
    needs_gpu: bool
    group_size: int | None = None
    """Weights of a row under one scale; a row must be a multiple of it. None = the whole row."""


def _int8(skip: Sequence[str], device: torch.device) -> QuantizationConfigMixin:
    from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415  (optional, slow)

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(skip))


def _int4(skip: Sequence[str], device: torch.device) -> QuantizationConfigMixin:
    from torchao import quantization  # noqa: PLC0415  (optional, slow)

    if device.type == "cuda":
        # The layout of torch's own kernel: it needs bfloat16 and no further package.
        config = quantization.Int4WeightOnlyConfig(
            group_size=INT4_GROUP_SIZE, int4_packing_format="tile_packed_to_4d"
        )
    else:
        # torchao 0.18 has no packed kernel for a CPU: 16 levels, each in a byte of its own.
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=quantization.PerGroup(INT4_GROUP_SIZE),
        )
    return TorchAoConfig(config, modules_to_not_convert=list(skip))


def _bnb_int8(skip: Sequence[str], device: torch.device) -> QuantizationConfigMixin:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip))


def _bnb_nf4(skip: Sequence[str], device: torch.device) -> QuantizationConfigMixin:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(skip),
    )


def _fp8(skip: Sequence[str], device: torch.device) -> QuantizationConfigMixin:
    return FineGrainedFP8Config(modules_to_not_convert=list(skip))


QUANTIZATIONS: dict[str, Quantization] = {
    "bnb-int8": Quantization(make_config=_bnb_int8, package="bitsandbytes", needs_gpu=True),
    "bnb-nf4": Quantization(make_config=_bnb_nf4, package="bitsandbytes", needs_gpu=True),
    "fp8": Quantization(make_config=_fp8, package=None, needs_gpu=True),
    "int4": Quantization(
        make_config=_int4, package="torchao", needs_gpu=False, group_size=INT4_GROUP_SIZE
    ),
    "int8": Quantization(make_config=_int8, package="torchao", needs_gpu=False),
}


def get_quantization(name: str, device: torch.device) -> Quantization:
    """Looks up a way to quantize that can be had on this device.

    Raises:
        ValueError: unknown, needs a GPU, or its package is not installed.
    """
    if name not in QUANTIZATIONS:
        known = ", ".join(sorted(QUANTIZATIONS))
        raise ValueError(f"unknown quantization {name!r}; known: {known}")
    quantization = QUANTIZATIONS[name]
    if quantization.needs_gpu and device.type == "cpu":
        on_cpu = ", ".join(n for n, q in sorted(QUANTIZATIONS.items()) if not q.needs_gpu)
        raise ValueError(
            f"quantization {name!r} needs a GPU, and the device is {device}; on a CPU take one "
            f"of {on_cpu}"
        )
    if quantization.package and importlib.util.find_spec(quantization.package) is None:
        raise ValueError(
            f"quantization {name!r} needs the package {quantization.package}: "
            f"pip install {quantization.package}"
        )
    return quantization


def quantization_config(name: str, denoiser: Denoiser, device: torch.device) -> object:
    """Makes what from_pretrained takes.

    Args:
        name: Key of `QUANTIZATIONS`.
        denoiser: The same architecture without weights, on the meta device.
        device: Where it will run.

    Raises:
        ValueError: not to be had, or a matrix's rows do not divide into groups.
    """
    quantization = get_quantization(name, device)
    group_size = quantization.group_size
    for module_name, linear in quantizable_modules(denoiser).items():
        if group_size is not None and linear.in_features % group_size:
            raise ValueError(
                f"quantization {name!r} needs rows that are multiples of {group_size}, but "
                f"{module_name} has rows of {linear.in_features}; take int8"
            )
    return quantization.make_config(_head_modules(denoiser), device)


def quantizable_modules(denoiser: Denoiser) -> dict[str, nn.Linear]:
    """The matrices that are quantized, by the name that they have in the transformers model."""
    head = set(_head_modules(denoiser))
    return {
        name: module
        for name, module in denoiser.model.named_modules()
        if isinstance(module, nn.Linear) and name not in head
    }


def is_quantized(weights: nn.Module) -> bool:
    """Whether a transformers model was loaded through a quantizer."""
    return getattr(weights, "hf_quantizer", None) is not None


def _head_modules(denoiser: Denoiser) -> list[str]:
    """Names of the modules that hold the head's matrix."""
    head = denoiser.head_weight
    return [
        name
        for name, module in denoiser.model.named_modules()
        if getattr(module, "weight", None) is head
    ]
