import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.losses import (
    UNKNOWN_LABEL,
    HiddenTargets,
    LogitsTargets,
    LossConfig,
    Targets,
    TeacherHead,
    Vocabulary,
    distillation_loss,
)
from tests.student_trainer.loss_cases import (
    DIVERGENCES,
    ENCODINGS,
    NORMALIZER,
    NUM_POSITIONS,
    SUPPORT,
    TEMPERATURES,
    VOCAB_SIZE,
    VOCABULARY,
    gradients_of,
    kept_ids,
    loss_of,
    make_case,
    make_targets,
    naive_loss,
    number,
    relative_error,
    top_k_targets,
)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_and_gradients_equal_the_naive_ones_in_float64(divergence, encoding, temperature):
    config = LossConfig(alpha=0.3, temperature=temperature, divergence=divergence, weighting="path")
    config = dataclasses.replace(config, max_chunk_elements=4 * VOCAB_SIZE)
    case = make_case()
    targets = make_targets(case, encoding, temperature)
    loss = loss_of(case, config, targets)
    total, ce, kd = naive_loss(case, config, kept=kept_ids(targets))
    torch.testing.assert_close(loss.total, total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.ce, ce.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.kd, kd.detach(), rtol=1e-12, atol=1e-12)
    for actual, expected in zip(
        gradients_of(loss.total, case), gradients_of(total, case), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_float32_agrees_with_float64_to_five_digits(divergence, encoding):
    config = LossConfig(alpha=0.5, temperature=2.0, divergence=divergence)
    wide, narrow = make_case(), make_case(dtype=torch.float32)
    targets = make_targets(narrow, encoding, 2.0)
    loss = loss_of(narrow, config, targets)
    total, _, _ = naive_loss(wide, config, kept=kept_ids(targets))
    assert loss.total.dtype == torch.float32
    assert relative_error(loss.total, total) < 1e-5
    for actual, expected in zip(
        gradients_of(loss.total, narrow), gradients_of(total, wide), strict=True
    ):
        assert actual.dtype == torch.float32
        assert relative_error(actual, expected) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.floats(0.0, 1.0),
    temperature=st.floats(0.5, 8.0),
    divergence=st.sampled_from(DIVERGENCES),
    beta=st.floats(0.05, 0.95),
    weighting=st.sampled_from(["none", "inv_t", "path"]),
    encoding=st.sampled_from(ENCODINGS),
    rows=st.integers(1, NUM_POSITIONS + 1),
)
def test_any_configuration_equals_the_naive_loss(
    *, seed, alpha, temperature, divergence, beta, weighting, encoding, rows
):
    config = LossConfig(
        alpha=alpha,
        temperature=temperature,
        divergence=divergence,
        jsd_beta=beta,
        weighting=weighting,
        max_chunk_elements=rows * VOCAB_SIZE,
    )
    case = make_case(seed)
    targets = make_targets(case, encoding, temperature)
    total, _, _ = naive_loss(case, config, kept=kept_ids(targets))
    loss = loss_of(case, config, targets)
    torch.testing.assert_close(loss.total, total, rtol=1e-10, atol=1e-10)
    for actual, expected in zip(
        gradients_of(loss.total, case), gradients_of(total, case), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_a_three_token_example_by_hand():
    # Student (1/2, 1/4, 1/4), teacher (1/4, 1/2, 1/4): KL = 1/4 ln(1/2) + 1/2 ln 2 = ln(2) / 4.
    vocabulary = Vocabulary(vocab_size=4, mask_token_id=3)
    student = torch.tensor([[0.5, 0.25, 0.25, 0.9]], dtype=torch.float64).log().T
    teacher = torch.tensor([[0.25, 0.5, 0.25, 0.9]], dtype=torch.float64).log()
    loss = distillation_loss(
        torch.ones(1, 1, dtype=torch.float64),
        student,
        None,
        vocabulary=vocabulary,
        labels_M=torch.tensor([0]),
        weights_M=torch.tensor([3.0]),
        targets=LogitsTargets(teacher),
        config=LossConfig(alpha=0.25, weighting="inv_t"),
        normalizer=2,
    )
    ce, kd = 1.5 * math.log(2), 1.5 * math.log(2) / 4
    assert number(loss.ce) == pytest.approx(ce)
    assert number(loss.kd) == pytest.approx(kd)
    assert float(loss.total) == pytest.approx(0.75 * ce + 0.25 * kd)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_digits_only_in_the_products(dtype):
    narrow = make_case(dtype=dtype)
    wide = dataclasses.replace(
        narrow,
        hidden_MD=narrow.hidden_MD.detach().double().requires_grad_(),
        weight_VD=narrow.weight_VD.detach().double().requires_grad_(),
        bias_V=narrow.bias_V.detach().double().requires_grad_(),
    )
    config = LossConfig(alpha=0.5, temperature=2.0, max_chunk_elements=2 * VOCAB_SIZE)
    targets = LogitsTargets(make_case().teacher_logits())
    loss, expected = loss_of(narrow, config, targets), loss_of(wide, config, targets)
    assert loss.total.dtype == torch.float32
    # bfloat16 keeps 8 bits, so a logit of 4 is off by up to 2**-7 and a loss by about as much.
    assert relative_error(loss.total, expected.total) < 2**-6
    gradients = gradients_of(expected.total, wide)
    for actual, exact in zip(gradients_of(loss.total, narrow), gradients, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual.double(), exact) < 2**-5


def test_gradients_pass_gradcheck():
    case = make_case()
    config = LossConfig(alpha=0.5, divergence="jsd", max_chunk_elements=3 * VOCAB_SIZE)
    targets = make_targets(case, "hidden", 1.0)

    def total(hidden_MD, weight_VD, bias_V):
        changed = dataclasses.replace(case, hidden_MD=hidden_MD, weight_VD=weight_VD, bias_V=bias_V)
        return loss_of(changed, config, targets).total

    assert torch.autograd.gradcheck(total, (case.hidden_MD, case.weight_VD, case.bias_V))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("encoding", ["hidden", "logits", "top_k"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_equal_to_the_student_gives_zero_loss_and_gradient(
    divergence, encoding, temperature, dtype
):
    case = make_case(dtype=dtype)
    logits_MV = case.student_logits()
    targets: Targets = LogitsTargets(logits_MV)
    if encoding == "hidden":
        head = TeacherHead(case.weight_VD.detach(), case.bias_V.detach())
        targets = HiddenTargets(case.hidden_MD.detach(), head)
    if encoding == "top_k":
        targets = top_k_targets(logits_MV, num_kept=len(SUPPORT), temperature=temperature)
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    loss = loss_of(case, config, targets)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert abs(float(loss.total.detach())) < tolerance
    assert all(float(g.abs().max()) < tolerance for g in gradients_of(loss.total, case))


def test_alpha_zero_is_plain_training_and_never_looks_at_the_teacher():
    case = make_case()
    config = LossConfig(alpha=0.0)
    poison = LogitsTargets(torch.full((1, 1), math.nan))
    with_teacher, without = loss_of(case, config, poison), loss_of(case, config, None)
    total, ce, _ = naive_loss(case, config)
    torch.testing.assert_close(without.total, total)
    torch.testing.assert_close(without.ce, ce.detach())
    assert without.kd is None
    assert torch.equal(with_teacher.total, without.total)


def test_alpha_one_needs_no_labels_and_reports_cross_entropy_only_where_it_has_them():
    case = make_case()
    config = LossConfig(alpha=1.0, temperature=2.0)
    targets = make_targets(case, "hidden", 2.0)
    unlabelled = distillation_loss(
        case.hidden_MD,
        case.weight_VD,
        case.bias_V,
        vocabulary=VOCABULARY,
        labels_M=None,
        weights_M=case.weights_M,
        targets=targets,
        config=config,
        normalizer=NORMALIZER,
    )
    labelled = loss_of(case, config, targets)
    assert unlabelled.ce is None
    torch.testing.assert_close(labelled.ce, naive_loss(case, config)[1].detach())
    for one, other in zip(
        gradients_of(unlabelled.total, case), gradients_of(labelled.total, case), strict=True
    ):
        assert torch.equal(one, other)


def test_positions_of_unknown_truth_learn_from_the_teacher_alone():
    case = make_case()
    unknown_M = torch.full_like(case.labels_M, UNKNOWN_LABEL)
    config = LossConfig(alpha=0.4, weighting="path")
    targets = make_targets(case, "hidden", 1.0)
    loss = loss_of(case, config, targets, labels_M=unknown_M)
    assert number(loss.ce) == 0.0
    assert float(loss.total.detach()) == pytest.approx(0.4 * number(loss.kd))
    teacher_only = loss_of(case, LossConfig(alpha=1.0), targets)
    for actual, expected in zip(
        gradients_of(loss.total, case), gradients_of(teacher_only.total, case), strict=True
    ):
        torch.testing.assert_close(actual, 0.4 * expected)


def test_missing_or_mismatched_inputs_are_refused():
    case = make_case()
    targets = make_targets(case, "hidden", 1.0)

    def call(config: LossConfig, **changes: object) -> None:
        arguments: dict[str, Any] = {
            "vocabulary": VOCABULARY,
            "labels_M": case.labels_M,
            "weights_M": case.weights_M,
            "targets": targets,
            "normalizer": NORMALIZER,
            **changes,
        }
        distillation_loss(case.hidden_MD, case.weight_VD, None, config=config, **arguments)

    with pytest.raises(ValueError, match=r"alpha is 0\.5 but there are no labels"):
        call(LossConfig(), labels_M=None)
    with pytest.raises(ValueError, match=r"alpha is 0\.5 but there are no targets"):
        call(LossConfig(), targets=None)
    with pytest.raises(ValueError, match="weighting 'path' needs labels"):
        call(LossConfig(alpha=1.0, weighting="path"), labels_M=None)
    with pytest.raises(ValueError, match="normalizer must be positive, got 0"):
        call(LossConfig(), normalizer=0)
    with pytest.raises(ValueError, match="weights_M holds 1 positions, hidden_MD 9"):
        call(LossConfig(), weights_M=torch.ones(1))
    with pytest.raises(ValueError, match="targets holds 8 positions, hidden_MD 9"):
        call(LossConfig(), targets=LogitsTargets(torch.zeros(8, VOCAB_SIZE)))
    with pytest.raises(ValueError, match="logits_MV has 12 columns"):
        call(LossConfig(), targets=LogitsTargets(torch.zeros(9, VOCAB_SIZE - 1)))
    with pytest.raises(ValueError, match="head_weight has 16 rows"):
        call(LossConfig(), vocabulary=Vocabulary(vocab_size=17, mask_token_id=0))
