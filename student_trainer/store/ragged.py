"""Small lossless forms of integer arrays: the narrowest dtype, and ids as 16 bits and a carry."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WIDTHS = (np.uint8, np.int8, np.uint16, np.int16)
MAX_CARRIES = 3
_LOW_BITS = 16
# 4 * K * (K + 1) bytes: 256 KiB, which stays in the cache.
_MAX_TABLE_ROW = 255


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


def unpack_ids(packed: PackedIds, row_counts: np.ndarray) -> np.ndarray:
    """[sum of K] int32 ids.

    Args:
        row_counts: [M] ids of each row.
    """
    if packed.low.dtype == np.int32:
        return packed.low
    token_ids = packed.low.astype("<i4")
    num_carries = packed.carries.shape[1]
    if not num_carries or not len(token_ids):
        return token_ids
    num_kept = int(row_counts[0])
    is_uniform = len(token_ids) == num_kept * len(row_counts) and (row_counts == num_kept).all()
    if is_uniform and num_kept <= _MAX_TABLE_ROW:
        steps = _steps(num_kept)
        grid = token_ids.reshape(-1, num_kept)
        for carry in range(num_carries):
            grid += steps.take(packed.carries[:, carry], axis=0, mode="clip")
        return token_ids
    first_M = np.cumsum(row_counts, dtype="<i8") - row_counts
    places = np.arange(len(token_ids)) - np.repeat(first_M, row_counts)
    for carry in range(num_carries):
        rises = np.repeat(packed.carries[:, carry], row_counts)
        token_ids += (places >= rises).astype("<i4") << _LOW_BITS
    return token_ids


@functools.lru_cache(maxsize=8)
def _steps(num_kept: int) -> np.ndarray:
    """[K + 1, K] int32: row c has 65,536 at the places from c on.

    Taking whole rows of a small table copies at memory speed; comparing every place with its row's
    carry is twice as slow.
    """
    return np.triu(np.ones((num_kept + 1, num_kept), dtype="<i4")) << _LOW_BITS
