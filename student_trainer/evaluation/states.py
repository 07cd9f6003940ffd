"""Evaluation states: held-out sequences under fixed masks, the same for every model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import DenoiserInfo
from masked_diffusion.forward_process import maskable_positions
from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.uniform_noise import start_states
from student_trainer.batches import SequenceBatch, collate
from student_trainer.data import TokenizedDataset


@dataclass(frozen=True, kw_only=True)
class EvaluationStates:
    """Noisy sequences that every model is measured on; B states of N sequences."""

    x0_BL: Tensor
    xt_BL: Tensor
    masked_BL: Tensor
    """Positions that are measured: the masked ones, or with uniform noise all that may be noise."""
    maskable_BL: Tensor
    """Positions that could have been masked: neither prompt nor padding nor special tokens."""
    t_B: Tensor
    """[B] float32: the share of its maskable positions that is masked (or noise), in (0, 1]."""
    lengths_B: Tensor
    sequences_B: Tensor
    """[B] int64 in [0, N): which sequence each state belongs to."""
    num_sequences: int


def held_out_states(
    dataset: TokenizedDataset,
    *,
    denoiser_info: DenoiserInfo,
    num_sequences: int,
    seed: int,
    masks_per_sequence: int = 1,
) -> EvaluationStates:
    """Draws sequences and masks from the seed alone: models with one tokenizer get the same.

    With n maskable positions, k of them are masked, and k/n is stratified: over all sequences
    together, and again over the masks of each sequence.
    """
    pad_token_id = _pad_id(denoiser_info)

    def has_something_to_mask(row: int) -> bool:
        batch = collate(dataset, [row], pad_token_id=pad_token_id)
        return bool(maskable_in(batch, denoiser_info).any())

    rows = draw_rows(
        dataset,
        is_eligible=has_something_to_mask,
        num_sequences=num_sequences,
        seed=seed,
        mend="lower num_sequences or hold out more files",
    )
    return states_of(
        collate(dataset, rows, pad_token_id=pad_token_id),
        denoiser_info=denoiser_info,
        seed=seed,
        masks_per_sequence=masks_per_sequence,
    )


def states_of(
    batch: SequenceBatch, *, denoiser_info: DenoiserInfo, seed: int, masks_per_sequence: int = 1
) -> EvaluationStates:
    """Draws the masks of given sequences, which must each have something to mask."""
    num_sequences = len(batch.lengths_B)
    maskable_NL = maskable_in(batch, denoiser_info)
    fractions_NR = _stratified_fractions(num_sequences, masks_per_sequence, seed)
    num_maskable_N = maskable_NL.sum(dim=1)
    # Fraction u of [0, 1) gives k = ceil(u n): each of 1..n is equally likely.
    num_masked_NR = (fractions_NR * num_maskable_N[:, None]).ceil().long().clamp(min=1)
    masked_BL = torch.stack(
        [
            _lowest(maskable_NL[row], int(num_masked_NR[row, draw]), seed, row, draw)
            for row in range(num_sequences)
            for draw in range(masks_per_sequence)
        ]
    )
    sequences_B = torch.arange(num_sequences).repeat_interleave(masks_per_sequence)
    x0_BL = batch.input_ids_BL[sequences_B]
    xt_BL = torch.where(masked_BL, denoiser_info.mask_token_id, x0_BL)
    if denoiser_info.noise == "uniform":
        xt_BL = start_states(
            xt_BL,
            frozen_BL=~masked_BL,
            info=denoiser_info,
            seeds=[seed] * len(xt_BL),
            sequence_ids=range(len(xt_BL)),
        )
        masked_BL = maskable_NL[sequences_B]
    return EvaluationStates(
        x0_BL=x0_BL,
        xt_BL=xt_BL,
        masked_BL=masked_BL,
        maskable_BL=maskable_NL[sequences_B],
        t_B=(num_masked_NR / num_maskable_N[:, None]).flatten(),
        lengths_B=batch.lengths_B[sequences_B],
        sequences_B=sequences_B,
        num_sequences=num_sequences,
    )


def draw_rows(
    dataset: TokenizedDataset,
    *,
    is_eligible: Callable[[int], bool],
    num_sequences: int,
    seed: int,
    mend: str,
) -> list[int]:
    """Draws sequences without replacement, from the seed alone.

    Args:
        mend: What to do where too few are eligible, for the error.

    Raises:
        ValueError: fewer than `num_sequences` are eligible.
    """
    rows: list[int] = []
    for row in _order(len(dataset), seed, step=0).tolist():
        if len(rows) == num_sequences:
            break
        if is_eligible(row):
            rows.append(row)
    if len(rows) < num_sequences:
        raise ValueError(
            f"{num_sequences} held-out sequences asked for, {len(rows)} available; {mend}"
        )
    return rows


def _stratified_fractions(num_sequences: int, masks_per_sequence: int, seed: int) -> Tensor:
    """Draws [N, R] in (0, 1): one per N-th over sequences, spaced by 1/R within a sequence."""
    jitter_N = keyed_uniforms(
        seed=seed, sequence_id=-1, step=0, length=num_sequences, stream="time"
    )
    first_N = (_order(num_sequences, seed, step=1) + jitter_N) / num_sequences
    offsets_R = np.arange(masks_per_sequence) / masks_per_sequence
    return torch.from_numpy((first_N[:, None] + offsets_R) % 1.0)


def _order(size: int, seed: int, *, step: int) -> np.ndarray:
    uniforms = keyed_uniforms(seed=seed, sequence_id=-1, step=step, length=size, stream="order")
    return uniforms.argsort(kind="stable")


def _lowest(maskable_L: Tensor, num_masked: int, seed: int, row: int, draw: int) -> Tensor:
    """Chooses `num_masked` of the maskable positions, those of the lowest keyed uniforms."""
    uniforms_L = torch.from_numpy(
        keyed_uniforms(seed=seed, sequence_id=row, step=draw, length=len(maskable_L), stream="mask")
    )
    chosen = uniforms_L.masked_fill(~maskable_L, torch.inf).argsort(stable=True)[:num_masked]
    return torch.zeros_like(maskable_L).index_fill_(0, chosen, True)


def maskable_in(batch: SequenceBatch, info: DenoiserInfo) -> Tensor:
    """Finds what may be masked: [B, L] bool, neither prompt nor padding nor special tokens."""
    return maskable_positions(
        batch.input_ids_BL,
        lengths_B=batch.lengths_B,
        prompt_lengths_B=batch.prompt_lengths_B,
        special_token_ids=info.special_token_ids,
        num_invalid_leading_positions=info.num_invalid_leading_positions,
    )


def _pad_id(info: DenoiserInfo) -> int:
    # Padding is never attended to, so any id serves where the family names none.
    return 0 if info.pad_token_id is None else info.pad_token_id
