"""Draws from a distribution with numbers that are given."""

import torch
from torch import Tensor


def invert_cdf(p_MV: Tensor, uniforms_M: Tensor) -> Tensor:
    """Finds the first id at which the cumulative probability exceeds the uniform.

    An id of probability 0 is never returned, not even by rounding.

    Returns:
        [M] int64.
    """
    cdf_MV = p_MV.double().cumsum(-1)
    total_M = cdf_MV[:, -1]
    # u * total stays below total for every float64 u < 1, so the search ends at an id with mass.
    target_M = uniforms_M.double() * total_M
    found_M = torch.searchsorted(cdf_MV, target_M[:, None], right=True)[:, 0]
    # Only for sums that are not numbers: an id past the vocabulary would be an error far from here,
    # and on a GPU the end of the process.
    return found_M.clamp_max(p_MV.shape[-1] - 1)
