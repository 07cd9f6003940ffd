"""The estimator against counting, and its lack of bias against all possible draws."""

import itertools
import statistics

import pytest

from student_trainer.tasks.pass_at_k import pass_at_k, standard_error

CASES = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize(("num_samples", "num_passed", "k"), CASES)
def test_it_is_the_share_of_all_choices_of_k_samples_with_one_that_passed(
    num_samples, num_passed, k
):
    samples = [True] * num_passed + [False] * (num_samples - num_passed)
    choices = list(itertools.combinations(samples, k))

    share = sum(any(choice) for choice in choices) / len(choices)

    assert pass_at_k(num_samples, num_passed, k) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_its_mean_over_all_outcomes_of_n_samples_is_the_probability_of_success(probability, k):
    num_samples, mean = 6, 0.0
    for outcome in itertools.product((True, False), repeat=num_samples):
        passed = sum(outcome)
        weight = probability**passed * (1 - probability) ** (num_samples - passed)
        mean += weight * pass_at_k(num_samples, passed, k)

    assert mean == pytest.approx(1 - (1 - probability) ** k, abs=1e-12)


def test_it_is_exact_for_many_samples():
    # 1 - C(190, 100) / C(200, 100), where products of floats would lose digits.
    assert pass_at_k(200, 10, 100) == pytest.approx(1 - 0.0007709, abs=1e-6)


@pytest.mark.parametrize("arguments", [(5, 2, 0), (5, 2, 6), (5, 6, 1), (5, -1, 1)])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must lie in"):
        pass_at_k(*arguments)


def test_the_standard_error_is_that_of_the_mean():
    values = [0.0, 1.0, 1.0, 0.25]

    assert standard_error(values) == pytest.approx(statistics.stdev(values) / 2)
    assert standard_error([1.0]) is None
