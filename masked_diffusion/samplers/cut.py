"""What top_p and top_k leave of a distribution, as a boundary: no sort of the whole vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_GUESS = 256
_GROWTH = 8
_TILE_IDS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Keeps the logits above a boundary, and on it the first ones in the order of ids."""

    boundary_M1: Tensor
    """[M, 1]."""
    num_equal_M1: Tensor | None
    """[M, 1] int64: how many that equal the boundary are kept; None = all."""

    def keeps(self, logits_MN: Tensor, ranks_MN: Tensor) -> Tensor:
        """[M, N] bool.

        Args:
            logits_MN: [M, N] any of the logits.
            ranks_MN: [M, N] int64: how many ids before it lie on the boundary; read only there.
        """
        if self.num_equal_M1 is None:
            return logits_MN >= self.boundary_M1
        is_equal_MN = logits_MN == self.boundary_M1
        return (logits_MN > self.boundary_M1) | (is_equal_MN & (ranks_MN < self.num_equal_M1))


def find_cut(
    logits_MV: Tensor, *, top_p: float | None, top_k: int | None, temperature: float = 1.0
) -> Cut | None:
    """Finds what top_p and then top_k keep of logits / temperature; None where that is all.

    top_p keeps the likeliest ids up to and including the one that crosses the mass, equal logits by
    id. top_k keeps what is at least the k-th largest of those; equals of the k-th stay.

    Args:
        logits_MV: [M, V] float32.
    """
    has_top_p = top_p is not None and top_p < 1
    if not (has_top_p or top_k) or logits_MV.shape[0] == 0:
        return None
    num_ids = logits_MV.shape[-1]
    if not has_top_p:
        largest = logits_MV.topk(min(top_k or num_ids, num_ids), dim=-1, sorted=False)
        kth_M1 = largest.values.amin(-1, keepdim=True)
        return Cut(boundary_M1=kth_M1 / temperature, num_equal_M1=None)
    assert top_p is not None
    normalizer_M1 = _logsumexp(logits_MV, temperature)
    num_looked_at = min(top_k or _FIRST_GUESS, num_ids)
    boundary_M1, num_equal_M1, is_found_M = _nucleus(
        logits_MV, normalizer_M1, top_p, temperature, num_looked_at
    )
    if not top_k:
        # One by one: a copy of the rows that are left could be as large as all logits.
        for row in (~is_found_M).nonzero()[:, 0].tolist():
            part, is_found, num_more = slice(row, row + 1), False, num_looked_at
            while not is_found and num_more < num_ids:
                num_more = min(num_more * _GROWTH, num_ids)
                boundary_M1[part], num_equal_M1[part], found_M = _nucleus(
                    logits_MV[part], normalizer_M1[part], top_p, temperature, num_more
                )
                is_found = bool(found_M.all())
    return Cut(boundary_M1=boundary_M1, num_equal_M1=num_equal_M1)


def _nucleus(
    logits_MV: Tensor, normalizer_M1: Tensor, top_p: float, temperature: float, num_looked_at: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The nucleus within the largest logits: its boundary, the equals that it keeps, if it ends."""
    largest_MK = logits_MV.topk(num_looked_at, dim=-1).values / temperature
    mass_MK = (largest_MK - normalizer_M1).exp()
    before_MK = mass_MK.cumsum(-1).roll(1, dims=-1)
    before_MK[:, 0] = 0
    num_in_M1 = (before_MK <= top_p).sum(-1, keepdim=True)
    boundary_M1 = largest_MK.gather(-1, num_in_M1 - 1)
    greater_M1 = mass_MK.masked_fill(largest_MK <= boundary_M1, 0).sum(-1, keepdim=True)
    # The equal of rank r is in while greater + r * each <= top_p; the first always is.
    each_M1 = mass_MK.gather(-1, num_in_M1 - 1)
    num_ids = logits_MV.shape[-1]
    ratio_M1 = ((top_p - greater_M1) / each_M1).nan_to_num(posinf=num_ids, neginf=0)
    num_equal_M1 = ratio_M1.clamp(0, num_ids).floor().long() + 1
    return boundary_M1, num_equal_M1, num_in_M1[:, 0] < num_looked_at


def _logsumexp(logits_MV: Tensor, temperature: float) -> Tensor:
    """[M, 1] of logits / temperature, without a copy of them all."""
    largest_M1 = logits_MV.amax(-1, keepdim=True) / temperature
    total_M1 = torch.zeros_like(largest_M1)
    for tile in logits_MV.split(_TILE_IDS, dim=-1):
        total_M1 += (tile / temperature - largest_M1).exp_().sum(-1, keepdim=True)
    return largest_M1 + total_M1.log()
