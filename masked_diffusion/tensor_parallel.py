"""Tensor parallelism by transformers' own plans: which matrices are split among the ranks."""

import torch.distributed as dist
from transformers.distributed import DistributedConfig

from masked_diffusion.families import Denoiser

DIVIDED_FIELDS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Fields of a config that every rank takes an equal share of."""


def world_size() -> int:
    """Ranks of the group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def distributed_config(denoiser: Denoiser, *, num_ranks: int) -> DistributedConfig:
    """Makes what from_pretrained takes to split the layers over all ranks.

    The head and the embeddings stay whole on every rank: clients fetch the head, and only one rank
    applies it, at positions that the others do not know of.

    Args:
        denoiser: The architecture without weights, on the meta device.
        num_ranks: Of the group of torch.distributed.

    Raises:
        ValueError: fewer than 2 ranks, a block-causal model, no plan, or something that the ranks
            cannot share equally.
    """
    name = denoiser.info.name
    if num_ranks < 2:  # noqa: PLR2004
        raise ValueError(
            f"tensor parallelism needs at least 2 ranks, but there is {num_ranks}; start it with "
            "torchrun --standalone --nproc-per-node 2"
        )
    if denoiser.info.block_length is not None:
        raise ValueError(
            f"{name} is block-causal; its rows are served from caches, which the ranks do not "
            "share: serve it on one device, without --tensor-parallel"
        )
    plan = denoiser.model.tp_plan
    if not plan:
        raise ValueError(
            f"{type(denoiser.model).__name__} ({name}) has no tensor-parallel plan in "
            "transformers; serve it on one device, without --tensor-parallel"
        )
    for field in DIVIDED_FIELDS:
        value = getattr(denoiser.model.config, field, None)
        if value is not None and value % num_ranks:
            raise ValueError(
                f"{field} of {name} is {value}, which {num_ranks} ranks cannot share equally; take "
                "a number of ranks that divides it"
            )
    return DistributedConfig(
        tp_size=num_ranks, tp_plan=dict.fromkeys(_whole_modules(denoiser), "replicate")
    )


def _whole_modules(denoiser: Denoiser) -> list[str]:
    """Names of the modules that hold the head's matrix or the input embeddings."""
    whole = (denoiser.head_weight, denoiser.model.get_input_embeddings().weight)
    return [
        name
        for name, module in denoiser.model.named_modules()
        if any(getattr(module, "weight", None) is weight for weight in whole)
    ]
