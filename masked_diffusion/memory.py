"""Bytes that weights take: of those in memory, and of those to be loaded in some number format."""

from dataclasses import dataclass

import torch
from torch import nn

from masked_diffusion.digests import plain_parts
from masked_diffusion.families import Denoiser
from masked_diffusion.quantization import INT4_GROUP_SIZE, quantizable_modules

FLOAT_FORMATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class PackedFormat:
    """How a quantized matrix lies in memory."""

    bits: int
    """Of one weight."""
    group_bytes: int
    """Of a group's scale and zero point: in torchao 0.18 float32 and int8 for a row of int8, two
    bfloat16 for a group of int4."""
    group_size: int | None = None
    """Weights of a row under one scale; None = the whole row."""

    def fits(self, linear: nn.Linear) -> bool:
        """Whether the rows of a matrix divide into groups."""
        return self.group_size is None or linear.in_features % self.group_size == 0

    def num_bytes(self, linear: nn.Linear) -> int:
        """Bytes of a matrix that fits."""
        num_weights = linear.weight.numel()
        num_groups = num_weights // (self.group_size or linear.in_features)
        return num_weights * self.bits // 8 + num_groups * self.group_bytes


PACKED_FORMATS = {
    "int8": PackedFormat(bits=8, group_bytes=5),
    "int4": PackedFormat(bits=4, group_bytes=4, group_size=INT4_GROUP_SIZE),
}
"""By their name in `QUANTIZATIONS`, beside bfloat16; int4 as packed on a GPU."""


def estimate_bytes(denoiser: Denoiser) -> dict[str, int | None]:
    """Bytes of the weights in every format: float32, bfloat16, float16, int8, int4.

    In the last two, what is not quantized (head, embeddings, norms) is bfloat16. Activations, and
    what a framework takes for itself, come on top. None where the rows of a matrix do not divide
    into the format's groups.

    Args:
        denoiser: May be on the meta device.
    """
    num_parameters = denoiser.model.num_parameters()
    sizes: dict[str, int | None] = {
        str(dtype).removeprefix("torch."): num_parameters * dtype.itemsize
        for dtype in FLOAT_FORMATS
    }
    linears = list(quantizable_modules(denoiser).values())
    num_packed = sum(linear.weight.numel() for linear in linears)
    rest = (num_parameters - num_packed) * torch.bfloat16.itemsize
    for name, packed in PACKED_FORMATS.items():
        sizes[name] = None
        if all(packed.fits(linear) for linear in linears):
            sizes[name] = rest + sum(packed.num_bytes(linear) for linear in linears)
    return sizes


def loaded_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters as they lie in memory; tied ones count once."""
    return sum(
        part.numel() * part.element_size()
        for name, parameter in module.named_parameters()
        for _, part in plain_parts(name, parameter)
    )
