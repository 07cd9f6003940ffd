"""Diversity against plain counting."""

import math
from collections import Counter

import numpy as np
import pytest

from student_trainer.evaluation.text_metrics import distinct_n, unigram_entropy

SEQUENCES = [
    np.random.default_rng(seed).integers(0, 6, size=5 + 3 * seed).tolist() for seed in range(6)
]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_entropy_equals_a_plain_sum_over_counts(sequence):
    counts = Counter(sequence)
    wanted = -math.fsum(
        count / len(sequence) * math.log(count / len(sequence)) for count in counts.values()
    )
    assert unigram_entropy(sequence) == pytest.approx(wanted, abs=1e-12)


def test_entropy_is_zero_for_one_id_and_log_of_the_length_for_all_different():
    assert unigram_entropy([7] * 20) == 0
    assert math.copysign(1, unigram_entropy([7] * 20)) == 1
    assert unigram_entropy(range(20)) == pytest.approx(math.log(20))
    assert unigram_entropy([]) == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_equals_plain_counting_and_never_crosses_a_border(n):
    seen, total = set(), 0
    for sequence in SEQUENCES:
        for start in range(len(sequence)):
            if start + n <= len(sequence):
                total += 1
                seen.add(" ".join(map(str, sequence[start : start + n])))
    assert distinct_n(SEQUENCES, n) == len(seen) / total


def test_distinct_n_of_repetition_is_small_and_of_nothing_is_none():
    assert distinct_n([[1, 2] * 50, [1, 2] * 50], 2) == 2 / 198
    assert distinct_n([[1], []], 2) is None
