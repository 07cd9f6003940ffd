"""Checks on a loaded denoiser that catch a causal or padding-dependent forward."""

import torch
from torch import Tensor

from masked_diffusion.families.base import Denoiser, padding_mask

TEST_LENGTH = 8
NUM_PADS = 3
TEST_TIME = 0.5
MIN_RELATIVE_CHANGE = 1e-6
"""Of the largest hidden value. A causal or pad-blind forward repeats its numbers exactly, since
shapes and kernels are the same; a seen token moves them by far more."""


@torch.no_grad()
def self_test(denoiser: Denoiser) -> None:
    """Proves on a padded batch that attention is full and that pads are invisible.

    Bidirectional attention is lost without a word in several releases and call styles of
    transformers, for every row, as soon as one row is padded; hence the padded batch.

    Raises:
        ValueError: a late token does not change an early position, or the content of the padding
            changes a real one.
    """
    was_training = denoiser.training
    denoiser.eval()
    try:
        _check(denoiser)
    finally:
        denoiser.train(was_training)


def _check(denoiser: Denoiser) -> None:
    first_id, other_id = _two_ordinary_ids(denoiser)
    length = min(TEST_LENGTH, denoiser.info.max_length)
    lengths_B = torch.tensor([length, length - min(NUM_PADS, length - 3)], device=denoiser.device)
    ids_BL = torch.full((2, length), first_id, device=denoiser.device)
    mask_BL = padding_mask(lengths_B, length)
    assert mask_BL is not None
    times_B = torch.full((2,), TEST_TIME, device=denoiser.device)
    base_BLD = denoiser.hidden_states(ids_BL, mask_BL, times_B=times_B)

    # A block sees nothing behind itself: there, late is the end of the first block.
    late_B = lengths_B.clamp(max=denoiser.info.block_length or TEST_LENGTH) - 1
    late_BL = ids_BL.scatter(1, late_B[:, None], other_id)
    late_BLD = denoiser.hidden_states(late_BL, mask_BL, times_B=times_B)
    early_change_B = _relative_change(late_BLD, base_BLD)[:, 0]
    if bool((early_change_B <= MIN_RELATIVE_CHANGE).any()):
        raise ValueError(
            f"{denoiser.info.name} attends causally: in a padded batch a late token does not "
            "change an early position; a masked-diffusion denoiser needs config.is_causal=False "
            "and transformers 5.2 or newer"
        )

    padded_BL = ids_BL.masked_fill(~mask_BL, other_id)
    padded_BLD = denoiser.hidden_states(padded_BL, mask_BL, times_B=times_B)
    pad_change_BL = _relative_change(padded_BLD, base_BLD)
    real_BL = mask_BL if denoiser.info.alignment == "aligned" else mask_BL.roll(1, dims=1)
    real_BL = real_BL & mask_BL
    if bool((pad_change_BL[real_BL] > MIN_RELATIVE_CHANGE).any()):
        raise ValueError(
            f"{denoiser.info.name} reads its padding: the ids of padded positions change real "
            "positions, so results would depend on the batch; the attention mask is not honoured"
        )


def _two_ordinary_ids(denoiser: Denoiser) -> tuple[int, int]:
    special = set(denoiser.info.special_token_ids)
    ordinary = (i for i in range(denoiser.info.vocab_size) if i not in special)
    return next(ordinary), next(ordinary)


def _relative_change(changed_BLD: Tensor, base_BLD: Tensor) -> Tensor:
    """Compares per position: [B, L], the largest change over the largest value."""
    change_BL = (changed_BLD - base_BLD).abs().amax(-1)
    return (change_BL / base_BLD.abs().amax()).float()
