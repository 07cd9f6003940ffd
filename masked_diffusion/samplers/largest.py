"""The largest logits of each row: their values and ids, with no sort of the whole vocabulary."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_NUM_IN_TILE = 16
_MIN_IDS_A_KEPT = 128
"""Of more ids than this for each one kept, tiles are looked at first: they then pay."""
_NUM_AT_ONCE = 1 << 18
"""Elements that numpy selects from at a time: its copy of them stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Largest:
    """Some ids of each row, in ascending order, and their logits."""

    ids_MN: Tensor
    """[M, N] int64; the last id of the vocabulary where a row has fewer than N."""
    values_MN: Tensor
    """[M, N] float32; -inf where a row has fewer than N."""


def at_least_kth(logits_MV: Tensor, k: int) -> Largest:
    """Finds the logits that are at least the k-th largest of their row; equals of the k-th stay.

    A row's result does not depend on the others, but for the width that it is padded to.

    Args:
        logits_MV: [M, V] float32, at least one id.
        k: Above 0; at or above V all ids are kept.
    """
    num_ids = logits_MV.shape[1]
    if num_ids < _MIN_IDS_A_KEPT * k:
        return _select(logits_MV, None, k=min(k, num_ids), last_id=num_ids - 1)
    ids_MC, values_MC = _candidates(logits_MV, k)
    return _select(values_MC, ids_MC, k=k, last_id=num_ids - 1)


def _candidates(logits_MV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and logits among which the k largest of each row and all equals of the k-th are.

    The k-th largest maximum of tiles is no larger than the k-th largest logit, so tiles whose
    maximum is below it hold none of those. A tile's ids lie far apart, as maxima over the slow
    dimension are the quick ones.
    """
    num_tiles = logits_MV.shape[1] // _NUM_IN_TILE
    num_tiled = num_tiles * _NUM_IN_TILE
    tiled_MWT = logits_MV[:, :num_tiled].unflatten(1, (_NUM_IN_TILE, num_tiles))
    maxima_MT = tiled_MWT.amax(1)
    rows_R, tiles_R = _where(maxima_MT >= _kth_largest(maxima_MT, k))
    tiles_MN = _pad(rows_R, tiles_R, num_rows=len(logits_MV), value=-1)
    within_W = num_tiles * torch.arange(_NUM_IN_TILE, device=logits_MV.device)
    ids_MC = (tiles_MN[:, :, None].clamp_min(0) + within_W).flatten(1)
    is_pad_MC = (tiles_MN < 0).repeat_interleave(_NUM_IN_TILE, dim=1)
    values_MC = logits_MV.gather(1, ids_MC).masked_fill_(is_pad_MC, -torch.inf)
    last_MC = torch.arange(num_tiled, logits_MV.shape[1], device=logits_MV.device).expand(
        len(logits_MV), -1
    )
    return torch.cat([ids_MC, last_MC], 1), torch.cat([values_MC, logits_MV[:, num_tiled:]], 1)


def _select(values_MC: Tensor, ids_MC: Tensor | None, *, k: int, last_id: int) -> Largest:
    """Those at least the k-th largest; ids None: a value's place is its id."""
    rows_R, places_R = _where(values_MC >= _kth_largest(values_MC, k))
    ids_R = places_R if ids_MC is None else ids_MC[rows_R, places_R]
    num_rows = len(values_MC)
    ids_MN = _pad(rows_R, ids_R, num_rows=num_rows, value=last_id)
    values_MN = _pad(rows_R, values_MC[rows_R, places_R], num_rows=num_rows, value=-torch.inf)
    if ids_MC is not None:
        # Stable: a row may keep the last id itself, and pads go behind it.
        ids_MN, order_MN = ids_MN.sort(dim=-1, stable=True)
        values_MN = values_MN.gather(1, order_MN)
    return Largest(ids_MN=ids_MN, values_MN=values_MN)


def _kth_largest(values_MN: Tensor, k: int) -> Tensor:
    """[M, 1]."""
    if values_MN.device.type != "cpu":
        return values_MN.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    # numpy selects with vector instructions, several times faster than topk here.
    place = values_MN.shape[1] - k
    kth = [
        np.partition(part.numpy(), place, axis=-1)[:, place]
        for part in values_MN.split(max(1, _NUM_AT_ONCE // values_MN.shape[1]))
    ]
    return torch.from_numpy(np.concatenate(kth))[:, None]


def _where(chosen_MN: Tensor) -> tuple[Tensor, Tensor]:
    """[R] int64 rows and columns, in row-major order."""
    if chosen_MN.device.type != "cpu":
        rows_R, columns_R = chosen_MN.nonzero(as_tuple=True)
        return rows_R, columns_R
    flat_R = np.flatnonzero(chosen_MN.numpy())
    rows, columns = np.divmod(flat_R, chosen_MN.shape[1])
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _pad(rows_R: Tensor, values_R: Tensor, *, num_rows: int, value: float) -> Tensor:
    """[num_rows, N], N at least 1: the values of each row side by side, `value` behind them."""
    counts_M = torch.bincount(rows_R, minlength=num_rows)
    starts_M = counts_M.cumsum(0) - counts_M
    places_R = torch.arange(len(rows_R), device=rows_R.device) - starts_M[rows_R]
    width = max(1, int(counts_M.max())) if num_rows else 1
    padded_MN = torch.full((num_rows, width), value, dtype=values_R.dtype, device=values_R.device)
    padded_MN[rows_R, places_R] = values_R
    return padded_MN
