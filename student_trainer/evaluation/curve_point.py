"""Points of the steps-against-quality curve."""

import math
from dataclasses import dataclass

from student_trainer.evaluation.intervals import ratio_ci95_half_width
from student_trainer.evaluation.passages import PassageScores, Scorer
from student_trainer.evaluation.sample_set import Diversity

MAX_EXPONENT = 300.0
"""Nats a token above which a perplexity would leave the floats, and JSON has no infinity."""


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What one scorer says of one sample set; a part of `CurvePoint`, so never without diversity.

    All numbers are None where no sample has a token.
    """

    scorer: str
    kind: str
    nats_per_token: float | None
    """Of all samples together, per token of the scorer's own tokenizer."""
    nats_per_token_ci95: float | None
    """Half width of the 95 % interval over samples."""
    perplexity: float | None
    """exp(nats_per_token), so it counts the scorer's tokens: comparable under one scorer only."""
    bits_per_byte: float | None
    """The same nats, per byte of text: comparable between scorers of one kind."""
    bits_per_byte_ci95: float | None
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a sample takes, mean over samples."""

    num_forwards: float
    """Two a step with guidance; idle steps take none."""
    seconds: float
    """Wall time of all samples by their number, in batches as the configuration says."""
    tokens_per_forward: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One sampler at one number of steps; or held-out text, which has neither, nor a cost."""

    model: str
    sampler: str | None
    num_steps: int | None
    cost: Cost | None
    diversity: Diversity
    perplexities: list[Perplexity]
    """One a scorer."""

    def perplexity_under(self, scorer: str) -> Perplexity:
        """Finds what a scorer says."""
        return next(found for found in self.perplexities if found.scorer == scorer)


def perplexity_of(scores: PassageScores, scorer: Scorer) -> Perplexity:
    """Sums up what a scorer says of a sample set."""
    nats, num_tokens, num_bytes = (
        float(values.sum()) for values in (scores.nats, scores.num_tokens, scores.num_bytes)
    )
    is_empty = num_tokens == 0 or num_bytes == 0
    bits = scores.nats / math.log(2)
    return Perplexity(
        scorer=scorer.name,
        kind=scorer.kind,
        nats_per_token=None if is_empty else nats / num_tokens,
        nats_per_token_ci95=(
            None if is_empty else ratio_ci95_half_width(scores.nats, scores.num_tokens)
        ),
        perplexity=None if is_empty else math.exp(min(nats / num_tokens, MAX_EXPONENT)),
        bits_per_byte=None if is_empty else float(bits.sum()) / num_bytes,
        bits_per_byte_ci95=None if is_empty else ratio_ci95_half_width(bits, scores.num_bytes),
        num_tokens=int(num_tokens),
        num_bytes=int(num_bytes),
    )
