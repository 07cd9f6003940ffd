"""The rule of the update, and its learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from student_trainer.config import TrainConfig

_BETAS = (0.9, 0.95)


def new_optimizers(
    module: nn.Module, config: TrainConfig, *, blocks: Iterable[nn.Module] = ()
) -> list[Optimizer]:
    """The optimizers that share the trained parameters between them; decay on matrices only.

    Args:
        blocks: whose matrices Muon takes; it is made for them, not for embeddings and heads.

    Raises:
        ValueError: a library is missing.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.optimizer != "muon":
        groups = _groups(parameters, config)
        return [_OPTIMIZERS[config.optimizer](groups, config)]
    inner = {id(p) for block in blocks for p in block.parameters() if _is_matrix(p)}
    matrices = [p for p in parameters if id(p) in inner]
    others = [p for p in parameters if id(p) not in inner]
    found: list[Optimizer] = []
    if matrices:
        found.append(
            torch.optim.Muon(
                matrices,
                lr=config.lr,
                weight_decay=config.weight_decay,
                # Moves as far as AdamW would, so one learning rate serves both.
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        found.append(_adamw(_groups(others, config), config))
    return found


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2  # noqa: PLR2004


def _groups(parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Decay on matrices only, as is usual for transformers."""
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]  # noqa: PLR2004
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]  # noqa: PLR2004
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=_BETAS, fused=True)


def _adafactor(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=config.lr)


def _adamw_8bit(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    if not torch.cuda.is_available():
        raise ValueError(
            "train.optimizer=adamw_8bit needs a GPU, and there is none; use adamw, or adafactor, "
            "which keeps little state too"
        )
    try:
        import bitsandbytes  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise ValueError(
            "train.optimizer=adamw_8bit needs bitsandbytes; pip install it, or use adamw"
        ) from error
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=config.lr, betas=_BETAS)
    return optimizer


_OPTIMIZERS: Mapping[str, Callable[[list[dict[str, Any]], TrainConfig], Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "adamw_8bit": _adamw_8bit,
}


def learning_rate(step: int, *, num_steps: int, config: TrainConfig) -> float:
    """Rate of the step that is about to be taken, counted from 0: warm-up, then decay."""
    num_warmup = math.ceil(config.lr_warmup_ratio * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    num_left = num_steps - num_warmup
    if config.lr_decay_style == "wsd":
        # Stable up to the decay, in which the progress is linear.
        num_left = min(num_left, math.ceil(config.lr_decay_ratio * num_steps))
    progress = max(0, step - (num_steps - num_left)) / max(1, num_left)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "wsd": 1 - progress,
        "constant": 1.0,
    }[config.lr_decay_style]
    return config.lr_min + (config.lr - config.lr_min) * share
