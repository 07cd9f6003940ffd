"""Tensors on their way to the wire: numbers of a format that targets carry, on the CPU."""

from collections.abc import Mapping

import torch
from torch import Tensor

from protos import codec
from teacher_server.engine.device_policy import to_host

TORCH_DTYPES: Mapping[codec.ValueDtype, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def dtype_name(dtype: torch.dtype) -> codec.ValueDtype:
    """The wire's name of a dtype.

    Raises:
        ValueError: targets cannot carry it.
    """
    for name, known in TORCH_DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(
        f"the denoiser runs in {dtype}; targets carry {', '.join(map(str, TORCH_DTYPES.values()))}"
        " only: load it with --dtype float32"
    )


def to_values(tensor: Tensor, dtype: codec.ValueDtype) -> codec.Values:
    """Copies a tensor to the CPU as wire numbers."""
    converted = to_host(tensor.detach().to(TORCH_DTYPES[dtype])).contiguous()
    bits = converted.view(torch.uint16) if dtype == "bf16" else converted
    return codec.Values(dtype=dtype, data=bits.numpy())
