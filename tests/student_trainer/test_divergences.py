import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.distributions import LOG_ZERO
from student_trainer.divergences import forward_kl, get_divergence, jensen_shannon, reverse_kl

NAMES = ("forward_kl", "reverse_kl", "jsd")


def random_log_probs(seed, num_buckets, scale):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(2, 6, num_buckets, generator=generator), dim=-1)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_buckets=st.integers(1, 40),
    scale=st.floats(0.01, 30.0),
    beta=st.floats(0.01, 0.99),
    name=st.sampled_from(NAMES),
)
def test_a_divergence_is_never_negative_and_zero_between_equals(
    seed, num_buckets, scale, beta, name
):
    divergence = get_divergence(name, jsd_beta=beta)
    teacher, student = random_log_probs(seed, num_buckets, scale)
    assert bool((divergence(teacher, student) >= 0).all())
    # Float32 adds at most 40 terms, each off by about 2**-24 of a few nats.
    assert float(divergence(teacher, teacher).max()) < 1e-5


def test_jsd_is_symmetric_at_one_half_and_bounded_by_ln_2():
    teacher, student = random_log_probs(0, 10, 50.0)
    one, other = (
        jensen_shannon(*pair, beta=0.5) for pair in ((teacher, student), (student, teacher))
    )
    torch.testing.assert_close(one, other)
    assert float(one.max()) <= math.log(2) + 1e-6


def test_jsd_over_beta_tends_to_forward_kl_and_over_its_rest_to_reverse_kl():
    # GKD (arXiv:2306.13649), section 3.1: the gradients tend to forward and reverse KL's.
    teacher, student = random_log_probs(1, 10, 1.0).double()
    small = jensen_shannon(teacher, student, beta=1e-6) / 1e-6
    large = jensen_shannon(teacher, student, beta=1 - 1e-6) / 1e-6
    torch.testing.assert_close(small, forward_kl(teacher, student), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(large, reverse_kl(teacher, student), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_bucket_empty_on_both_sides_counts_for_nothing(name):
    divergence = get_divergence(name, jsd_beta=0.3)
    teacher, student = random_log_probs(2, 7, 1.0).double()
    expected = divergence(teacher, student)
    empty = torch.full((6, 2), LOG_ZERO, dtype=torch.float64)
    student = torch.cat([student, empty], dim=-1).requires_grad_()
    actual = divergence(torch.cat([teacher, empty], dim=-1), student)
    torch.testing.assert_close(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), student)
    assert not gradient[:, 7:].any()


def test_a_divergence_that_rounds_below_zero_still_has_its_gradient():
    log_probs = random_log_probs(3, 30, 1.0)[0]
    student = (log_probs + 1e-8).requires_grad_()
    value = forward_kl(log_probs, student).sum()
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, -log_probs.exp())
