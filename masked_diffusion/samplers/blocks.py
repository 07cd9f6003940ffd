"""Where a step of each row stands when a sequence is filled block by block."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch
from masked_diffusion.samplers.config import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class BlockStep:
    """One step of each row within its block."""

    candidates_BL: Tensor
    """[B, L] bool: masked positions of the block at work and of those before it."""
    counts_B: Tensor
    """[B] int64: what a fixed schedule unmasks of them at this step."""
    is_last_B: Tensor
    """[B] bool: the block's last step, which must leave none of them."""


def block_step(rows: RowBatch, config: SamplerConfig, *, mask_token_id: int) -> BlockStep:
    """Finds each row's block and what is due in it, from what is frozen, the state and the step.

    A row's blocks are those that hold an open (not frozen) position, counted from its first open
    position, or from position 0 where the denoiser has blocks of its own. Steps are dealt evenly
    over the blocks, and positions of a block evenly over its steps; where it does not come out
    even, the earlier ones get one more. A row with more blocks than steps takes several
    neighbouring blocks as one, dealt in the same way.

    Nothing but the masks comes from the state, so that a trajectory that is resumed goes on with
    the same blocks and counts.

    Source: LLaDA, `generate` and `get_num_transfer_tokens`, which ask for counts that come out
    even.
    """
    open_BL = ~rows.frozen_BL
    ordinals_BL = _ordinals(_grid(rows, config, open_BL), open_BL)
    num_blocks_B = (ordinals_BL.amax(-1) + 1).clamp_min(1)
    num_groups_B = num_blocks_B.minimum(rows.num_steps_B)
    groups_BL = _deal(ordinals_BL, num_blocks_B[:, None], num_groups_B[:, None])
    group_B = _deal(rows.step_B, rows.num_steps_B, num_groups_B)

    base_B, rest_B = rows.num_steps_B // num_groups_B, rows.num_steps_B % num_groups_B
    step_in_block_B = rows.step_B - (group_B * base_B + group_B.minimum(rest_B))
    num_steps_B = base_B + (group_B < rest_B).long()
    num_open_B = (open_BL & (groups_BL == group_B[:, None])).sum(-1)
    due_B = num_open_B // num_steps_B + (step_in_block_B < num_open_B % num_steps_B).long()

    masked_BL = rows.masked(mask_token_id=mask_token_id)
    candidates_BL = masked_BL & (groups_BL <= group_B[:, None])
    num_left_B = candidates_BL.sum(-1)
    is_last_B = step_in_block_B == num_steps_B - 1
    return BlockStep(
        candidates_BL=candidates_BL,
        counts_B=torch.where(is_last_B, num_left_B, due_B.minimum(num_left_B)),
        is_last_B=is_last_B,
    )


def _grid(rows: RowBatch, config: SamplerConfig, open_BL: Tensor) -> Tensor:
    """Numbers the blocks that positions lie in: [B, L] int64, not descending along a row."""
    positions_L = torch.arange(open_BL.shape[1])
    if rows.denoiser_block_length is not None:
        return (positions_L // rows.denoiser_block_length).expand(open_BL.shape)
    if config.block_length == 0:
        return torch.zeros(open_BL.shape, dtype=torch.int64)
    first_B1 = open_BL.long().argmax(-1, keepdim=True)
    return (positions_L - first_B1) // config.block_length


def _ordinals(grid_BL: Tensor, open_BL: Tensor) -> Tensor:
    """Counts the blocks with open positions from 0: [B, L] int64, meaningful where open."""
    # The highest block with an open position so far; -1 before the first.
    reached_BL = grid_BL.masked_fill(~open_BL, -1).cummax(-1).values
    before_BL = reached_BL.roll(1, dims=-1)
    before_BL[:, :1] = -1
    return (reached_BL > before_BL).cumsum(-1) - 1


def _deal(index: Tensor, num_items: Tensor, num_groups: Tensor) -> Tensor:
    """Finds the group of an item when items are dealt in order, the first groups one more."""
    base, rest = num_items // num_groups, num_items % num_groups
    num_in_larger = rest * (base + 1)
    in_smaller = rest + (index - num_in_larger) // base.clamp_min(1)
    return torch.where(index < num_in_larger, index // (base + 1), in_smaller)
