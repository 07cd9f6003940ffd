"""Confidence intervals of means and of paired differences."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NORMAL_QUANTILE = 1.959964
# Student's t, 0.975 quantile, for 1 to 28 degrees of freedom (2 to 29 values).
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of a - b over the same sequences, states and masks."""

    mean: float
    ci95: float
    """Half width of the 95 % interval."""
    relative: float
    """mean / mean of b: -0.05 says that a is 5 % below b."""

    @property
    def is_significant(self) -> bool:
        """Tells whether the interval leaves zero out."""
        return abs(self.mean) > self.ci95


def ci95_half_width(values: ArrayLike) -> float:
    """Returns the half width of the 95 % interval of the mean of independent values.

    The normal approximation from 30 values on, Student's t below; ValueError below 2.
    """
    values_N = np.asarray(values, dtype=np.float64)
    num_values = len(values_N)
    degrees = num_values - 1
    if degrees < 1:
        raise ValueError(f"a confidence interval needs at least 2 values, got {num_values}")
    quantile = T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else NORMAL_QUANTILE
    return float(quantile * values_N.std(ddof=1) / np.sqrt(num_values))


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Compares two models by their values on the same sequences, [N] each.

    Pairing removes what the sequences and masks have in common, which is most of the spread.
    The interval covers the choice of sequences and masks, not another training run.
    """
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.shape != b_N.shape:
        raise ValueError(f"a pair needs the same sequences: got {len(a_N)} and {len(b_N)} values")
    difference_N = a_N - b_N
    return PairedDifference(
        mean=float(difference_N.mean()),
        ci95=ci95_half_width(difference_N),
        relative=float(difference_N.mean() / b_N.mean()),
    )
