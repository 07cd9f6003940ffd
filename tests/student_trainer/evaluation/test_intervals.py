"""Confidence intervals against textbook numbers."""

import math
import statistics

import numpy as np
import pytest

from student_trainer.evaluation.intervals import T_QUANTILES, ci95_half_width, paired_difference


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
