"""Confidence intervals of means, ratios, shares and paired differences."""

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
    quantile = _quantile(len(values_N))
    return float(quantile * values_N.std(ddof=1) / np.sqrt(len(values_N)))


def ratio_ci95_half_width(numerators: ArrayLike, denominators: ArrayLike) -> float:
    """Returns the half width of the 95 % interval of sum(numerators) / sum(denominators).

    For values that come in independent clusters of unequal size, [N] each: nats and tokens of a
    sequence, for example. Linearised, so it needs clusters enough that the denominators' sum
    varies little.

    Source: Cochran, Sampling Techniques (1977), 6.3 and 9A (ratio estimate of cluster samples).
    """
    top_N = np.asarray(numerators, dtype=np.float64)
    bottom_N = np.asarray(denominators, dtype=np.float64)
    quantile = _quantile(len(top_N))
    ratio = top_N.sum() / bottom_N.sum()
    residual_N = (top_N - ratio * bottom_N) / bottom_N.mean()
    return float(quantile * residual_N.std(ddof=1) / np.sqrt(len(top_N)))


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share; it stays inside [0, 1] and is right near 0 and 1.

    Source: Wilson, JASA 22 (1927).
    """
    if not 0 <= num_successes <= num_trials or num_trials < 1:
        raise ValueError(
            f"a share needs 0 <= successes <= trials and trials >= 1, got {num_successes} of "
            f"{num_trials}"
        )
    z_squared = NORMAL_QUANTILE**2
    share = num_successes / num_trials
    centre = share + z_squared / (2 * num_trials)
    spread = NORMAL_QUANTILE * np.sqrt(
        share * (1 - share) / num_trials + z_squared / (4 * num_trials**2)
    )
    scale = 1 + z_squared / num_trials
    low, high = float((centre - spread) / scale), float((centre + spread) / scale)
    # Rounding could leave [0, 1] or the share itself by 1e-16.
    return min(share, max(0.0, low)), max(share, min(1.0, high))


def _quantile(num_values: int) -> float:
    degrees = num_values - 1
    if degrees < 1:
        raise ValueError(f"a confidence interval needs at least 2 values, got {num_values}")
    return T_QUANTILES[degrees - 1] if degrees <= len(T_QUANTILES) else NORMAL_QUANTILE


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
