import dataclasses
import itertools
import math

import pytest
import torch

from student_trainer.losses import LossConfig, Vocabulary
from tests.student_trainer.loss_cases import (
    DIVERGENCES,
    SUPPORT,
    TEMPERATURES,
    gradients_of,
    loss_of,
    make_case,
    make_targets,
    number,
    top_k_targets,
)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_top_k_is_between_zero_and_the_dense_divergence_and_meets_it_at_full_support(
    divergence, temperature
):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    for seed in range(5):
        case = make_case(seed)
        dense = loss_of(case, config, make_targets(case, "hidden", temperature)).kd
        values = []
        for num_kept in range(len(SUPPORT) + 1):
            targets = top_k_targets(
                case.teacher_logits(), num_kept=num_kept, temperature=temperature
            )
            values.append(number(loss_of(case, config, targets).kd))
        # Keeping one more id splits a bucket, which can only raise a divergence.
        assert values[0] >= 0.0
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
        assert values[-1] == pytest.approx(number(dense), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_log_probs_rounded_to_float16_never_give_a_negative_divergence(
    divergence, temperature, dtype
):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    for seed, num_kept in itertools.product(range(10), (1, 4, len(SUPPORT))):
        case = make_case(seed, dtype=dtype, num_positions=1)
        targets = top_k_targets(
            case.student_logits(),
            num_kept=num_kept,
            temperature=temperature,
            log_prob_dtype=torch.float16,
        )
        loss = loss_of(case, config, targets)
        # The teacher is the student but for rounding, so the divergence is of its square.
        assert 0.0 <= number(loss.kd) < 1e-4


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_of_nothing_stays_finite_whether_or_not_all_ids_are_kept(divergence):
    case = make_case()
    config = LossConfig(alpha=1.0, divergence=divergence)
    for num_kept, tail in ((3, -math.inf), (len(SUPPORT), -math.inf), (len(SUPPORT), -9.0)):
        targets = top_k_targets(case.teacher_logits(), num_kept=num_kept, temperature=1.0)
        tails_M = torch.full_like(targets.tail_log_mass_M, tail)
        loss = loss_of(case, config, dataclasses.replace(targets, tail_log_mass_M=tails_M))
        assert math.isfinite(number(loss.kd))
        assert all(bool(g.isfinite().all()) for g in gradients_of(loss.total, case))


def test_a_mask_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="mask_token_id must be an id below vocab_size 4, got 4"):
        Vocabulary(vocab_size=4, mask_token_id=4)
