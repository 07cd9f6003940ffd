"""Loads the denoiser that tasks are put to."""

import torch

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from student_trainer.tasks.options import ModelOptions


def load_model(options: ModelOptions) -> Denoiser:
    """Loads a checkpoint, in evaluation mode.

    Raises:
        ValueError: no such dtype, or as `load_denoiser`.
    """
    dtype = None if options.dtype in (None, "auto") else getattr(torch, str(options.dtype), None)
    if options.dtype not in (None, "auto") and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must name a torch dtype, as bfloat16, got {options.dtype!r}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_denoiser(
        options.model,
        device=device,
        dtype=dtype,
        trust_remote_code=options.trust_remote_code,
        run_self_test=options.self_test,
        mask_token_id=options.mask_token_id,
        alignment=options.alignment,
        block_length=options.denoiser_block_length,
        adapters=options.adapters,
        quantization=options.quantization,
    )
