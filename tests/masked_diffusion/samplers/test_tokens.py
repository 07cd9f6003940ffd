import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers.tokens import filter_logits, sample_tokens

ConfidenceName = Literal["probability", "margin", "negative_entropy"]
CONFIDENCES: tuple[ConfidenceName, ...] = ("probability", "margin", "negative_entropy")


def slow_filter(logits: list[float], *, top_p: float | None, top_k: int | None) -> list[bool]:
    """Says which ids survive, from the definition: ids sorted by (logit, id), masses summed."""
    kept = [True] * len(logits)
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    if top_p is not None and top_p < 1:
        biggest = max(logits)
        masses = [math.exp(logit - biggest) for logit in logits]
        total = sum(masses)
        before = 0.0
        for v in order:
            kept[v] = before <= top_p
            before += masses[v] / total
    if top_k:
        survivors = sorted((logits[v] for v in order if kept[v]), reverse=True)
        lowest = survivors[min(top_k, len(survivors)) - 1]
        kept = [keep and logit >= lowest for keep, logit in zip(kept, logits, strict=True)]
    return kept


def slow_sample(
    logits: list[float],
    *,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    confidence: ConfidenceName,
    uniform: float,
) -> tuple[int, float]:
    """Samples one position in float64."""
    if temperature > 0:
        logits = [logit / temperature for logit in logits]
    kept = slow_filter(logits, top_p=top_p, top_k=top_k)
    biggest = max(logits)
    masses = [
        math.exp(logit - biggest) if keep else 0.0 for logit, keep in zip(logits, kept, strict=True)
    ]
    p = [mass / sum(masses) for mass in masses]
    token = p.index(max(p))
    if temperature > 0:
        cumulative = 0.0
        for token, share in enumerate(p):  # noqa: B007  (the last token is the result)
            cumulative += share
            if cumulative > uniform:
                break
    if confidence == "probability":
        return token, p[token]
    if confidence == "margin":
        first, second = sorted(p, reverse=True)[:2]
        return token, first - second
    return token, sum(share * math.log(max(share, 1e-10)) for share in p)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("top_p", [None, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 0, 1, 5, 1000])
def test_tokens_and_confidences_equal_a_slow_reference(
    confidence: ConfidenceName, temperature: float, top_p: float | None, top_k: int | None
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits_MV = 3 * torch.randn(12, 40, generator=generator)
    logits_MV[:, 7] = EXCLUDED_LOGIT
    # Ties at every rank: half the ids repeat the others.
    logits_MV[6:, 20:] = logits_MV[6:, :20]
    uniforms_M = torch.rand(12, generator=generator, dtype=torch.float64)
    samples = sample_tokens(
        logits_MV,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        confidence=confidence,
        uniforms_M=uniforms_M,
    )
    for m in range(12):
        token, sure = slow_sample(
            logits_MV[m].tolist(),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            confidence=confidence,
            uniform=uniforms_M[m].item(),
        )
        assert samples.token_ids_M[m] == token
        # float32 softmax over 40 ids: a few roundings of 6e-8, and logs of up to 23.
        assert samples.confidence_M[m].item() == pytest.approx(sure, abs=5e-6)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "expected"),
    [
        (0.0, None, None, (0.64391, 0.40703, -0.94754)),
        (0.0, 0.5, None, (1.0, 1.0, 0.0)),
        (0.0, None, 1, (1.0, 1.0, 0.0)),
        (1.0, 0.9, 2, (0.7311, 0.46212, -0.58220)),
    ],
)
def test_measured_confidences_of_upstream(
    temperature: float, top_p: float | None, top_k: int | None, expected: tuple[float, ...]
) -> None:
    for confidence, value in zip(CONFIDENCES, expected, strict=True):
        samples = sample_tokens(
            torch.tensor([[3.0, 2.0, 1.0, 0.0]]),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            confidence=confidence,
            uniforms_M=torch.tensor([0.1], dtype=torch.float64),
        )
        assert samples.token_ids_M.tolist() == [0]
        # The measured values have five digits, one of them four.
        assert samples.confidence_M.item() == pytest.approx(value, abs=5e-5)


@given(
    grid=st.lists(st.integers(-3, 3), min_size=2, max_size=12),
    top_p=st.sampled_from([None, 0.137, 0.541, 0.893]),
    top_k=st.sampled_from([None, 1, 2, 3, 5, 20]),
)
def test_filters_with_many_ties_equal_a_slow_reference(
    grid: list[int], top_p: float | None, top_k: int | None
) -> None:
    logits = [float(value) for value in grid]
    filtered_MV = filter_logits(torch.tensor([logits]), top_p=top_p, top_k=top_k)
    kept = (filtered_MV[0] > torch.finfo(torch.float32).min).tolist()
    assert kept == slow_filter(logits, top_p=top_p, top_k=top_k)


def test_no_position_is_a_legal_input() -> None:
    for confidence in CONFIDENCES:
        samples = sample_tokens(
            torch.empty(0, 9),
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            confidence=confidence,
            uniforms_M=torch.empty(0, dtype=torch.float64),
        )
        assert samples.token_ids_M.shape == samples.confidence_M.shape == (0,)


@given(
    uniform=st.floats(2.0**-53, 1 - 2.0**-52, exclude_min=True),
    excluded=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    top_p=st.sampled_from([None, 0.5, 0.9999999]),
)
def test_an_excluded_id_is_never_drawn(
    uniform: float, excluded: int, temperature: float, top_p: float | None
) -> None:
    logits_MV = torch.tensor([[0.3, -2.0, 5.0, -300.0, 1.0]])
    logits_MV[0, excluded] = EXCLUDED_LOGIT
    samples = sample_tokens(
        logits_MV,
        temperature=temperature,
        top_p=top_p,
        top_k=None,
        confidence="probability",
        uniforms_M=torch.tensor([uniform], dtype=torch.float64),
    )
    assert samples.token_ids_M.item() != excluded
    assert samples.confidence_M.item() > 0


def test_draws_follow_the_distribution() -> None:
    num_draws = 20_000
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    generator = torch.Generator().manual_seed(0)
    samples = sample_tokens(
        p.log().expand(num_draws, -1),
        temperature=1.0,
        top_p=None,
        top_k=None,
        confidence="probability",
        uniforms_M=torch.rand(num_draws, generator=generator, dtype=torch.float64),
    )
    share = torch.bincount(samples.token_ids_M, minlength=4) / num_draws
    # Four standard deviations of a binomial share.
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / num_draws).sqrt()).all())


def test_bfloat16_logits_are_measured_in_float32() -> None:
    samples = sample_tokens(
        torch.tensor([[7.0, 0.0]], dtype=torch.bfloat16),
        temperature=0.0,
        top_p=None,
        top_k=None,
        confidence="probability",
        uniforms_M=torch.tensor([0.5], dtype=torch.float64),
    )
    # In bfloat16 it would be 1.0.
    assert samples.confidence_M.item() == pytest.approx(1 / (1 + math.exp(-7)), abs=1e-6)
