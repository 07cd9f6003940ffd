"""Confidences before the draw's temperature and filters, and greedy draws, in slow float64."""

import math
from typing import Literal

import pytest
import torch

from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers.tokens import sample_tokens

RawName = Literal["raw_probability", "raw_negative_entropy"]
RAW: tuple[RawName, ...] = ("raw_probability", "raw_negative_entropy")
EXCLUDED, NUM_ROWS, NUM_IDS = 7, 12, 40


def _slow_softmax(logits: list[float]) -> list[float]:
    biggest = max(logits)
    masses = [math.exp(logit - biggest) for logit in logits]
    return [mass / math.fsum(masses) for mass in masses]


def _logits() -> torch.Tensor:
    """[M, V] with an id that cannot be drawn and with ties at every rank in half the rows."""
    logits_MV = 3 * torch.randn(NUM_ROWS, NUM_IDS, generator=torch.Generator().manual_seed(3))
    logits_MV[:, EXCLUDED] = EXCLUDED_LOGIT
    logits_MV[6:, 20:] = logits_MV[6:, :20]
    return logits_MV


def _uniforms() -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("confidence", RAW)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(None, None), (0.6, None), (None, 3), (0.9, 5)])
def test_raw_confidences_are_those_of_the_unscaled_unfiltered_logits(
    confidence: RawName, temperature: float, top_p: float | None, top_k: int | None
) -> None:
    logits_MV = _logits()
    draw = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "uniforms_M": _uniforms()}
    samples = sample_tokens(logits_MV, confidence=confidence, **draw)  # type: ignore[arg-type]
    filtered = sample_tokens(logits_MV, confidence="probability", **draw)  # type: ignore[arg-type]
    assert torch.equal(samples.token_ids_M, filtered.token_ids_M), "a measure changes no draw"
    for logits, token, sure in zip(
        logits_MV.tolist(),
        samples.token_ids_M.tolist(),
        samples.confidence_M.tolist(),
        strict=True,
    ):
        p = _slow_softmax(logits)
        expected = p[token]
        if confidence == "raw_negative_entropy":
            expected = math.fsum(share * math.log(max(share, 1e-10)) for share in p)
        # float32 softmax over 40 ids: a few roundings of 6e-8, and logs of up to 23.
        assert sure == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(None, None), (0.6, None), (None, 3), (0.9, 5)])
def test_greedy_positions_take_the_likeliest_id_and_the_others_draw(
    temperature: float, top_p: float | None, top_k: int | None
) -> None:
    logits_MV, greedy_M = _logits(), torch.arange(NUM_ROWS) % 2 == 0
    draw = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "uniforms_M": _uniforms()}
    samples = sample_tokens(
        logits_MV,
        confidence="raw_probability",
        greedy_M=greedy_M,
        **draw,  # type: ignore[arg-type]
    )
    drawn = sample_tokens(logits_MV, confidence="raw_probability", **draw)  # type: ignore[arg-type]
    for m, logits in enumerate(logits_MV.tolist()):
        # The lower of equals.
        expected = logits.index(max(logits)) if greedy_M[m] else int(drawn.token_ids_M[m])
        assert int(samples.token_ids_M[m]) == expected
        sure = _slow_softmax(logits)[expected]
        assert samples.confidence_M[m].item() == pytest.approx(sure, abs=5e-6)


def test_greedy_is_what_temperature_0_does() -> None:
    logits_MV = _logits()
    greedy, hot = (
        sample_tokens(
            logits_MV,
            temperature=temperature,
            top_p=None,
            top_k=None,
            confidence="raw_probability",
            uniforms_M=_uniforms(),
            greedy_M=greedy_M,
        )
        for temperature, greedy_M in ((0.0, None), (1.7, torch.ones(NUM_ROWS, dtype=torch.bool)))
    )
    assert torch.equal(greedy.token_ids_M, hot.token_ids_M)
    assert torch.equal(greedy.confidence_M, hot.confidence_M)


def test_sums_that_are_not_numbers_give_an_id_of_the_vocabulary() -> None:
    samples = sample_tokens(
        torch.full((2, 4), torch.nan),
        temperature=1.0,
        top_p=None,
        top_k=None,
        confidence="probability",
        uniforms_M=torch.tensor([0.3, 0.9], dtype=torch.float64),
    )
    assert bool((samples.token_ids_M < 4).all())
