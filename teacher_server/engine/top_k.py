"""The most probable ids of each position and the mass that is left."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers.largest import at_least_kth
from protos import codec
from teacher_server.engine.values import to_values

_TILE_IDS = 1024
"""Ids that are summed at a time: what is written for them stays in the processor's cache."""


def encode_top_k(
    logits_MV: Tensor,
    *,
    top_k: int,
    top_p: float,
    temperatures: tuple[float, ...],
    dtype: Literal["f32", "f16"],
) -> codec.TopK:
    """The most probable ids of each row, fewer where they reach the mass `top_p`, and the tail.

    The ids that are kept leave `logits_MV` for the time of the call, so that the rest is summed
    without a copy: one pass over the vocabulary for each temperature, and one for `top_p`.

    Args:
        logits_MV: [M, V] float32, `EXCLUDED_LOGIT` at the same ids in all rows; as it was after
            the call.
        top_k: ids kept at most, of equals the first ones; at or above the support all of it is
            kept.
        top_p: in (0, 1]; 1 = no such cut.

    Returns:
        Ids ascending within a row. Tails and normalisers come from the full row, for each
        temperature: a truncated row cannot tell them.
    """
    largest = at_least_kth(logits_MV, top_k)
    max_M1 = largest.values_MN.amax(-1, keepdim=True)
    excluded = (logits_MV[:1] <= EXCLUDED_LOGIT / 2).nonzero()[:, 1]
    logits_MV[:, excluded] = -torch.inf
    kept_MN = _first_k(largest.values_MN, top_k)
    # In float32 the mass of a peaked row reaches 1 long before its last id: no cut at 1.
    if top_p < 1:
        log_total_M = _log_mass(logits_MV, max_M1, temperature=1.0)
        log_probs_MN = (largest.values_MN - max_M1 - log_total_M[:, None]).float()
        kept_MN &= _within_mass(log_probs_MN.masked_fill(~kept_MN, -torch.inf), top_p)
    rows_R, places_R = kept_MN.nonzero(as_tuple=True)
    ids_R, values_R = largest.ids_MN[rows_R, places_R], largest.values_MN[rows_R, places_R]
    logits_MV[rows_R, ids_R] = -torch.inf
    kept_values_MN = largest.values_MN.masked_fill(~kept_MN, -torch.inf)
    log_rests, log_totals = {}, {}
    for temperature in {1.0, *temperatures}:
        log_rests[temperature] = _log_mass(logits_MV, max_M1, temperature=temperature)
        log_kept_M = _log_mass_of_few(kept_values_MN, max_M1, temperature=temperature)
        log_totals[temperature] = torch.logaddexp(log_rests[temperature], log_kept_M)
    logits_MV[rows_R, ids_R] = values_R
    logits_MV[:, excluded] = EXCLUDED_LOGIT
    row_offsets = np.zeros(len(logits_MV) + 1, dtype=np.int32)
    np.cumsum(kept_MN.sum(dim=-1).cpu().numpy(), out=row_offsets[1:])
    log_probs_R = (values_R - max_M1[rows_R, 0]).double() - log_totals[1.0][rows_R]
    return codec.TopK(
        row_offsets=row_offsets,
        token_ids=ids_R.to(torch.int32).cpu().numpy(),
        log_probs=to_values(log_probs_R, dtype),
        temperatures=np.asarray(temperatures, dtype=np.float32),
        # Of log-probabilities over a temperature, the largest of which is -log_totals[1].
        log_normalizers=_stacked([log_totals[t] - log_totals[1.0] / t for t in temperatures]),
        tail_log_masses=_stacked([log_rests[t] - log_totals[t] for t in temperatures]),
    )


def _first_k(values_MN: Tensor, k: int) -> Tensor:
    """[M, N] bool: at most k of each row, of those equal to the smallest the first; none excluded.

    Args:
        values_MN: Those at least the k-th largest.
    """
    kth_M1 = values_MN.topk(min(k, values_MN.shape[1]), dim=-1).values[:, -1:]
    is_greater_MN = values_MN > kth_M1
    is_equal_MN = values_MN == kth_M1
    num_left_M1 = k - is_greater_MN.sum(-1, keepdim=True)
    is_first_MN = is_equal_MN & (is_equal_MN.cumsum(-1) <= num_left_M1)
    return (is_greater_MN | is_first_MN) & (values_MN > EXCLUDED_LOGIT / 2)


def _within_mass(log_probs_MN: Tensor, top_p: float) -> Tensor:
    """[M, N] bool: the likeliest up to and including the one that crosses the mass."""
    order_MN = log_probs_MN.argsort(dim=-1, descending=True, stable=True)
    probs_MN = log_probs_MN.gather(1, order_MN).exp()
    needed_MN = probs_MN.cumsum(dim=-1) - probs_MN < top_p
    return torch.zeros_like(needed_MN).scatter_(1, order_MN, needed_MN)


def _log_mass(logits_MV: Tensor, max_M1: Tensor, *, temperature: float) -> Tensor:
    """[M] float64: log sum exp((logit - max) / temperature); -inf logits weigh nothing."""
    # Its own largest, and not that of the whole row: a tail may lie far below.
    own_max_M1 = logits_MV.amax(-1, keepdim=True).clamp_min(EXCLUDED_LOGIT)
    mass_M = torch.zeros(len(logits_MV), dtype=torch.float64, device=logits_MV.device)
    for tile_MC in logits_MV.split(_TILE_IDS, dim=-1):
        mass_M += (tile_MC - own_max_M1).div_(temperature).exp_().sum(-1)
    return mass_M.log() + (own_max_M1 - max_M1)[:, 0].double() / temperature


def _log_mass_of_few(values_MN: Tensor, max_M1: Tensor, *, temperature: float) -> Tensor:
    """[M] float64, of ids that the largest is one of."""
    # From left to right, so that what a row is padded to does not change it.
    mass_MN = ((values_MN - max_M1) / temperature).exp().double().cumsum(-1)
    return mass_MN[:, -1].log()


def _stacked(rows: list[Tensor]) -> np.ndarray:
    """[len(rows), M] float32."""
    stacked: np.ndarray = torch.stack(rows).float().cpu().numpy()
    return stacked
