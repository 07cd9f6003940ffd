"""The absorbing forward process q(xt given x0): which tokens of clean sequences are masked at t."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.randomness import keyed_uniforms, keyed_uniforms_batch


@dataclass(frozen=True)
class NoisedBatch:
    """Clean sequences and their noisy states, right padded."""

    x0_BL: Tensor
    """[B, L] int64, the clean ids."""
    xt_BL: Tensor
    """[B, L] int64, x0 with noise at some positions that carry a loss."""
    loss_BL: Tensor
    """[B, L] bool, the positions that carry a loss: those masked here, or with uniform noise, which
    does not show, every position that may be noisy."""
    t_B: Tensor
    """[B] float32, the time of each sequence."""
    lengths_B: Tensor
    """[B] int64, real positions of each row; the rest is padding."""


def sample_times(
    sequence_ids: Sequence[int],
    *,
    seed: int,
    epoch_step: int,
    t_min: float = 1 / 500,
    t_max: float = 1 - 1 / 500,
    stratified: bool = True,
    offset: int = 0,
    total: int | None = None,
) -> Tensor:
    """Draws a time per sequence, uniform over [0, 1) and then clamped to [t_min, t_max].

    Stratified, the global batch of `total` sequences gets one time from each of `total` equal
    strata, dealt out at random: every time is uniform by itself, and together they cover [0, 1)
    evenly, which lowers the variance of the loss.

    Args:
        sequence_ids: Of the rows wanted here.
        seed: Of the run.
        epoch_step: Counts draws (the optimizer step), so that a sequence seen again is masked anew.
        t_min: Lower clamp; above 0, since a loss may divide by t.
        t_max: Upper clamp.
        stratified: False draws each time alone.
        offset: Index of the first of these rows in the global batch of all ranks.
        total: Size of that global batch; None means that these rows are all.

    Returns:
        [B] float32.

    Raises:
        ValueError: bad clamps, or rows that do not fit into the global batch.

    Source: Kingma et al., arXiv:2107.00630 (low-discrepancy times); the clamps are Open-dLLM's.
    """
    if not 0 < t_min <= t_max <= 1:
        raise ValueError(f"need 0 < t_min <= t_max <= 1, got t_min={t_min}, t_max={t_max}")
    num_rows = len(sequence_ids)
    total = num_rows if total is None else total
    if offset < 0 or offset + num_rows > total:
        raise ValueError(
            f"rows {offset} to {offset + num_rows} do not fit into a global batch of {total}"
        )
    time_B = keyed_uniforms_batch(
        seeds=[seed] * num_rows,
        sequence_ids=sequence_ids,
        steps=[epoch_step] * num_rows,
        length=1,
        stream="time",
    )[:, 0]
    if stratified:
        strata_B = _deal_strata(total, seed=seed, epoch_step=epoch_step)[offset:][:num_rows]
        time_B = (strata_B + time_B) / max(total, 1)
    return time_B.float().clamp(t_min, t_max)


def _deal_strata(total: int, *, seed: int, epoch_step: int) -> Tensor:
    """Permutes 0 .. total - 1, alike on every rank; -1 is nobody's sequence id."""
    order = keyed_uniforms(
        seed=seed, sequence_id=-1, step=epoch_step, length=total, stream="time"
    ).argsort(kind="stable")
    return torch.from_numpy(order)


def maskable_positions(
    ids_BL: Tensor,
    *,
    lengths_B: Tensor,
    prompt_lengths_B: Tensor | None = None,
    special_token_ids: Collection[int],
    num_invalid_leading_positions: int = 0,
) -> Tensor:
    """Finds where the forward process may mask.

    Args:
        ids_BL: [B, L] int64, right padded.
        lengths_B: [B] real positions per row.
        prompt_lengths_B: [B] leading positions that are given and so stay; None means none.
        special_token_ids: Ids that are never masked, wherever they stand.
        num_invalid_leading_positions: Positions that the denoiser cannot predict (1 for shifted
            families).

    Returns:
        [B, L] bool: neither prompt, padding, special token nor invalid.
    """
    positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    first_B1 = torch.full_like(lengths_B, num_invalid_leading_positions)[:, None]
    if prompt_lengths_B is not None:
        first_B1 = torch.maximum(first_B1, prompt_lengths_B[:, None])
    inside_BL = (positions_L >= first_B1) & (positions_L < lengths_B[:, None])
    special = torch.tensor(sorted(special_token_ids), dtype=ids_BL.dtype, device=ids_BL.device)
    return inside_BL & ~torch.isin(ids_BL, special)


def mask_tokens(
    x0_BL: Tensor,
    *,
    maskable_BL: Tensor,
    t_B: Tensor,
    uniforms_BL: Tensor,
    mask_token_id: int,
    lengths_B: Tensor,
) -> NoisedBatch:
    """Masks each maskable position on its own with the schedule's probability at its row's time.

    Args:
        x0_BL: [B, L] int64 clean ids, right padded; not changed.
        maskable_BL: [B, L] bool, from `maskable_positions`.
        t_B: [B] times in [0, 1].
        uniforms_BL: [B, L] in (0, 1), stream "mask"; a position is masked where it lies below the
            probability.
        mask_token_id: The id written.
        lengths_B: [B] real positions, passed through.
    """
    masked_BL = maskable_BL & (uniforms_BL < schedule.mask_probability(t_B)[:, None])
    return NoisedBatch(
        x0_BL=x0_BL,
        xt_BL=x0_BL.masked_fill(masked_BL, mask_token_id),
        loss_BL=masked_BL,
        t_B=t_B,
        lengths_B=lengths_B,
    )
