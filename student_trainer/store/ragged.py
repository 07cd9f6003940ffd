"""Small lossless forms of integer arrays: the narrowest dtype, and ids as 16 bits and a carry."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WIDTHS = (np.uint8, np.int8, np.uint16, np.int16)
MAX_CARRIES = 3
_LOW_BITS = 16
# Tables of all carries of a row stay in the second-level cache.
_MAX_TABLE_BYTES = 1 << 21


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """[n + 1] int64: where each of n pieces begins in their concatenation, and its end."""
    offsets = np.zeros(len(lengths) + 1, dtype="<i8")
    np.cumsum(np.asarray(lengths, dtype="<i8"), out=offsets[1:])
    return offsets


def narrow(numbers: np.ndarray) -> np.ndarray:
    """The same integers in the narrowest dtype that holds them all, int32 at most."""
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    for width in _WIDTHS:
        if np.iinfo(width).min <= low and high <= np.iinfo(width).max:
            return numbers.astype(width)
    return numbers.astype("<i4")


@dataclass(frozen=True, slots=True, eq=False)
class PackedIds:
    """Ascending ids of many rows, two bytes each and a little more a row.

    An id is `low + 65536 * c`, where c is the number of the row's carries at or before its place:
    ids ascend within a row, so c never falls, and it is enough to say where it rises.
    """

    low: np.ndarray
    """[sum of K] uint16; int32 ids as they are where they do not fit below 262,144."""
    carries: np.ndarray
    """[M, C]: place in the row from which on the high part is at least 1, 2, ... C; no smaller
    than the row's length where it never is."""


def pack_ids(token_ids: np.ndarray, row_offsets: np.ndarray) -> PackedIds:
    """Packs ids, [sum of K] int32 ascending within each of the M rows."""
    num_rows = len(row_offsets) - 1
    num_carries = int(token_ids.max(initial=0)) >> _LOW_BITS
    if num_carries > MAX_CARRIES:
        return PackedIds(token_ids.astype("<i4"), np.zeros((num_rows, 0), dtype=np.uint8))
    carries = np.empty((num_rows, num_carries), dtype="<i4")
    for carry in range(num_carries):
        below = np.zeros(len(token_ids) + 1, dtype="<i8")
        np.cumsum(token_ids < (carry + 1) << _LOW_BITS, out=below[1:])
        carries[:, carry] = below[row_offsets[1:]] - below[row_offsets[:-1]]
    return PackedIds(token_ids.astype("<u2"), narrow(carries))


def unpack_ids(
    packed: PackedIds, row_counts: np.ndarray, *, num_kept: int | None = None
) -> np.ndarray:
    """[sum of K] int32 ids.

    Args:
        row_counts: [M] ids of each row.
        num_kept: K, where all rows have as many; None = they may differ.
    """
    if packed.low.dtype == np.int32:
        return packed.low
    token_ids = packed.low.astype("<i4")
    num_carries = packed.carries.shape[1]
    if not num_carries or not len(token_ids):
        return token_ids
    if num_kept is not None and _table_bytes(num_kept, num_carries) <= _MAX_TABLE_BYTES:
        places_M = packed.carries[:, 0].astype(np.intp)
        for carry in range(1, num_carries):
            places_M *= num_kept + 1
            places_M += packed.carries[:, carry]
        # Taking whole rows of a table copies at memory speed; comparing every place with its row's
        # carries is several times slower.
        table = _steps(num_kept, num_carries)
        grid_MK = token_ids.reshape(-1, num_kept)
        grid_MK += table.take(places_M, axis=0, mode="clip")
        return token_ids
    first_M = np.cumsum(row_counts, dtype="<i8") - row_counts
    places = np.arange(len(token_ids)) - np.repeat(first_M, row_counts)
    for carry in range(num_carries):
        rises = np.repeat(packed.carries[:, carry], row_counts)
        token_ids += (places >= rises).astype("<i4") << _LOW_BITS
    return token_ids


def _table_bytes(num_kept: int, num_carries: int) -> int:
    return 4 * num_kept * (num_kept + 1) ** num_carries


@functools.lru_cache(maxsize=8)
def _steps(num_kept: int, num_carries: int) -> np.ndarray:
    """[(K + 1) ** C, K] int32: what the carries c, c' ... add to a row, in row c * (K + 1) + c'."""
    one = np.triu(np.ones((num_kept + 1, num_kept), dtype="<i4")) << _LOW_BITS
    table = one
    for _ in range(1, num_carries):
        table = (table[:, None] + one).reshape(-1, num_kept)
    return table
