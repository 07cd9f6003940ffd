import dataclasses
import math

import pytest
import torch
from torch import nn

from student_trainer.losses import HiddenTargets, LossConfig, Vocabulary, distillation_loss
from tests.student_trainer.loss_cases import (
    ENCODINGS,
    MASK,
    NORMALIZER,
    NUM_POSITIONS,
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    gradients_of,
    loss_of,
    make_case,
    make_targets,
    number,
)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_mask_and_the_padded_vocabulary_are_never_read(encoding):
    config = LossConfig(alpha=0.5, temperature=2.0)
    clean, poisoned = make_case(), make_case()
    outside = [MASK, *range(VOCAB_SIZE, PADDED_VOCAB_SIZE)]
    with torch.no_grad():
        poisoned.weight_VD[outside] = math.nan
        poisoned.bias_V[outside] = math.nan
        poisoned.teacher_head.weight_VD[outside] = math.nan
    loss = loss_of(clean, config, make_targets(clean, encoding, 2.0))
    poisoned_loss = loss_of(poisoned, config, make_targets(poisoned, encoding, 2.0))
    assert torch.equal(loss.total, poisoned_loss.total)
    gradients = gradients_of(poisoned_loss.total, poisoned)
    for actual, expected in zip(gradients, gradients_of(loss.total, clean), strict=True):
        assert torch.equal(actual, expected)
    assert not gradients[1][outside].any()
    assert not gradients[2][outside].any()


@pytest.mark.parametrize("mask_token_id", [0, 5, VOCAB_SIZE - 1])
def test_the_mask_may_be_any_id(mask_token_id):
    vocabulary = Vocabulary(vocab_size=VOCAB_SIZE, mask_token_id=mask_token_id)
    case = make_case()
    labels_M = (torch.arange(NUM_POSITIONS) % (VOCAB_SIZE - 1) + mask_token_id + 1) % VOCAB_SIZE
    loss = distillation_loss(
        case.hidden_MD,
        case.weight_VD,
        None,
        vocabulary=vocabulary,
        labels_M=labels_M,
        weights_M=torch.ones(NUM_POSITIONS),
        targets=None,
        config=LossConfig(alpha=0.0),
        normalizer=NUM_POSITIONS,
    )
    logits_MV = (case.hidden_MD @ case.weight_VD.T)[:, :VOCAB_SIZE]
    logits_MV[:, mask_token_id] = -torch.inf
    expected = nn.functional.cross_entropy(logits_MV, labels_M)
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_chunk_size_changes_nothing(encoding):
    case = make_case()
    targets = make_targets(case, encoding, 2.0)
    results = []
    for rows in (1, 2, 5, NUM_POSITIONS, 1000):
        config = LossConfig(
            alpha=0.5, temperature=2.0, weighting="path", max_chunk_elements=rows * VOCAB_SIZE
        )
        loss = loss_of(case, config, targets)
        results.append([loss.total, loss.ce, loss.kd, *gradients_of(loss.total, case)])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_doubling_positions_and_normaliser_leaves_the_loss_unchanged():
    case = make_case()
    config = LossConfig(alpha=0.5)
    doubled = dataclasses.replace(
        case,
        hidden_MD=torch.cat([case.hidden_MD, case.hidden_MD]),
        teacher_hidden_MD=case.teacher_hidden_MD.repeat(2, 1),
        labels_M=case.labels_M.repeat(2),
        weights_M=case.weights_M.repeat(2),
    )
    loss = loss_of(case, config, make_targets(case, "hidden", 1.0))
    twice = loss_of(
        doubled, config, make_targets(doubled, "hidden", 1.0), normalizer=2 * NORMALIZER
    )
    for part in ("total", "ce", "kd"):
        torch.testing.assert_close(getattr(twice, part), getattr(loss, part))


def test_no_positions_give_a_zero_loss_that_still_reaches_every_parameter():
    case = make_case(num_positions=0)
    for normalizer in (NORMALIZER, 0):
        targets = HiddenTargets(case.teacher_hidden_MD, case.teacher_head)
        loss = loss_of(case, LossConfig(), targets, normalizer=normalizer)
        assert float(loss.total.detach()) == number(loss.ce) == number(loss.kd) == 0.0
        gradients = gradients_of(loss.total, case)
        assert [g.shape for g in gradients] == [
            case.hidden_MD.shape,
            case.weight_VD.shape,
            case.bias_V.shape,
        ]
        assert not any(g.any() for g in gradients)
