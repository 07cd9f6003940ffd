"""What is done to every block of the student before it is sharded: compile, recompute."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from masked_diffusion.families import Denoiser
from student_trainer.train_options import ShardingOptions


def prepare_blocks(denoiser: Denoiser, options: ShardingOptions) -> None:
    """Replaces the blocks' forwards as the options say; parameters keep their names.

    FSDP's hooks are around a forward and not in it, so a compiled one has no graph break, and a
    recomputed one finds its weights gathered for the backward that asks for it.
    """
    for block in denoiser.blocks:
        if options.enable_compile:
            block.forward = torch.compile(block.forward)
        if options.enable_gradient_checkpointing:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
