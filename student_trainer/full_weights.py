"""The student's weights as they are exported: whole, each once, adapters merged."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from masked_diffusion.families import Denoiser
from student_trainer.lora import merge_adapters


@torch.no_grad()
def full_weights(denoiser: Denoiser, *, is_kept: bool = True) -> dict[str, Tensor]:
    """Gathers what is sharded, a tensor at a time; all ranks take part.

    Args:
        is_kept: False on ranks that need none of it: each tensor is dropped there once gathered.

    Returns:
        By their names in denoiser.model, on the CPU; tied ones under their first name alone.
        Empty where nothing is kept.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in denoiser.model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_kept:
            found[name] = whole.detach().cpu()
    return merge_adapters(found, denoiser)
