"""The share of problems that one of k samples solves, estimated from n of them."""

import math
from collections.abc import Sequence


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Estimates the probability that at least one of k samples passes, without bias.

    It is that of k samples drawn without replacement from those at hand. Plugging the share of
    passed samples p into 1 - (1 - p)**k instead is too low on average.

    Args:
        num_samples: n, samples of a problem.
        num_passed: How many of them passed.
        k: 1 <= k <= n.

    Raises:
        ValueError: k or num_passed out of range.

    Source: Chen et al., arXiv:2107.03374, eq. 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in [1, num_samples={num_samples}], got {k}")
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"num_passed must lie in [0, {num_samples}], got {num_passed}")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def standard_error(values: Sequence[float]) -> float | None:
    """Gives the standard error of the mean over problems; None for fewer than two."""
    num_values = len(values)
    if num_values < 2:  # noqa: PLR2004
        return None
    mean = math.fsum(values) / num_values
    variance = math.fsum((value - mean) ** 2 for value in values) / (num_values - 1)
    return math.sqrt(variance / num_values)
