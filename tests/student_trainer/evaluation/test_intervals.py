"""Confidence intervals against textbook numbers."""

import math
import statistics

import numpy as np
import pytest

from student_trainer.evaluation.intervals import (
    T_QUANTILES,
    ci95_half_width,
    paired_difference,
    ratio_ci95_half_width,
    wilson_interval,
)


def student_t_density(x, degrees):
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale -= math.log(degrees * math.pi) / 2
    return np.exp(scale) * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)


def test_the_t_quantiles_leave_a_fortieth_above():
    for degrees, quantile in enumerate(T_QUANTILES, start=1):
        x = np.linspace(0, quantile, 100_001)
        inside = np.trapezoid(student_t_density(x, degrees), x)
        # The table has three decimals, and the density there is at most 0.06.
        assert 0.5 - inside == pytest.approx(0.025, abs=0.0005 * 0.06)


@pytest.mark.parametrize(("num_values", "quantile"), [(5, 2.776), (29, 2.048), (30, 1.959964)])
def test_the_half_width_is_the_quantile_times_the_standard_error(num_values, quantile):
    values = np.random.default_rng(0).normal(size=num_values).tolist()
    wanted = quantile * statistics.stdev(values) / math.sqrt(num_values)
    assert ci95_half_width(values) == pytest.approx(wanted, rel=1e-12)


def test_pairing_removes_what_both_share():
    generator = np.random.default_rng(0)
    shared = generator.normal(5, 10, size=200)
    b = shared + generator.normal(0, 0.1, size=200)
    a = shared + generator.normal(-0.5, 0.1, size=200)

    found = paired_difference(a, b)

    differences = (a - b).tolist()
    assert found.mean == pytest.approx(statistics.fmean(differences))
    wanted = 1.959964 * statistics.stdev(differences) / math.sqrt(200)
    assert found.ci95 == pytest.approx(wanted)
    assert found.ci95 < ci95_half_width(a) / 50
    assert found.relative == pytest.approx(found.mean / b.mean())
    assert found.is_significant
    assert not paired_difference(a, a + generator.normal(0, 1, size=200)).is_significant


def test_values_of_other_sequences_are_refused():
    with pytest.raises(ValueError, match="got 3 and 2 values"):
        paired_difference([1, 2, 3], [1, 2])


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        ci95_half_width([1.0])


def test_a_ratio_of_equal_clusters_is_a_mean():
    values = np.random.default_rng(0).normal(3, 1, size=12)
    found = ratio_ci95_half_width(5 * values, np.full(12, 5))
    assert found == pytest.approx(ci95_half_width(values), rel=1e-12)


def test_a_ratio_equals_a_plain_linearisation():
    tops, bottoms = [3.0, 8.0, 1.0, 9.0, 4.0], [2.0, 5.0, 1.0, 7.0, 2.0]
    ratio = math.fsum(tops) / math.fsum(bottoms)
    residuals = [top - ratio * bottom for top, bottom in zip(tops, bottoms, strict=True)]
    # The residuals sum to zero, so their spread is about zero itself.
    variance = math.fsum(r * r for r in residuals) / 4 / 5 / statistics.fmean(bottoms) ** 2
    assert ratio_ci95_half_width(tops, bottoms) == pytest.approx(2.776 * math.sqrt(variance))


def test_a_ratio_covers_the_truth_in_about_95_of_100_draws_where_positions_would_not():
    generator = np.random.default_rng(0)
    covered, covered_by_position = 0, 0
    for _ in range(400):
        sizes = generator.integers(5, 40, size=40)
        levels = generator.normal(2.0, 0.5, size=40)
        values = [
            generator.normal(level, 0.5, size=n) for level, n in zip(levels, sizes, strict=True)
        ]
        sums = np.array([v.sum() for v in values])
        ratio = sums.sum() / sizes.sum()
        covered += abs(ratio - 2.0) <= ratio_ci95_half_width(sums, sizes)
        covered_by_position += abs(ratio - 2.0) <= ci95_half_width(np.concatenate(values))
    assert 0.91 < covered / 400 < 0.98  # four standard errors of 400 draws
    assert covered_by_position / 400 < 0.6


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 10), (10, 10), (5, 10), (1, 1000), (377, 1000)]
)
def test_wilson_bounds_are_where_the_normal_test_turns(successes, trials):
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        z = abs(share - bound) / math.sqrt(max(bound * (1 - bound), 1e-300) / trials)
        at_edge = bound in (0, 1)
        assert at_edge or z == pytest.approx(1.959964, rel=1e-6)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got 1 of 0"):
        wilson_interval(1, 0)
