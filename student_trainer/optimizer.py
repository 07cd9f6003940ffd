"""AdamW and its learning rate as a function of the step."""

import math

import torch
from torch import nn

from student_trainer.config import TrainConfig


def new_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, as is usual for transformers."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],  # noqa: PLR2004
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.ndim < 2],  # noqa: PLR2004
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, *, num_steps: int, config: TrainConfig) -> float:
    """Rate of the step that is about to be taken, counted from 0: warm-up, then decay."""
    num_warmup = math.ceil(config.lr_warmup_ratio * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[config.lr_decay_style]
    return config.lr_min + (config.lr - config.lr_min) * share
