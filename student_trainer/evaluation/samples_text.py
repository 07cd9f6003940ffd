"""The steps-against-quality curve in tables and words."""

from collections.abc import Sequence

from student_trainer.evaluation.curve_point import CurvePoint, Perplexity
from student_trainer.report_text import ABSENT, Table

CAPTION = (
    "Above: perplexity by forwards and by wall time of a sample. Below: entropy by forwards, and "
    "perplexity by entropy: a point that lies to the left of the held-out text buys its "
    "perplexity with repetition. Bars are 95 % intervals over samples; the black line or star is "
    "held-out text."
)
PLAIN_CAPTION = (
    "No scorer was given, so this shows diversity alone. Bars are 95 % intervals over samples; "
    "the black line is held-out text."
)


NOTE = (
    "forwards and s/sample: of one sample, on this machine. perplexity = exp(nats per token of the "
    "scorer's own tokenizer). entropy: of the ids within a sample. distinct-n: different n-grams "
    "of all n-grams. ± is half of a 95 % interval over samples."
)
DIVERSITY_NOTE = (
    "tokens: written ids of a sample. different: share of samples that no other equals. empty: "
    "samples that end before they begin."
)


def tables(points: Sequence[CurvePoint], scorers: Sequence[tuple[str, str]]) -> list[Table]:
    """One table a scorer, with diversity and cost of the same samples in each line; then details.

    Args:
        points: In reading order.
        scorers: Name and kind of each.
    """
    scored = [_scored(points, scorer, kind) for scorer, kind in scorers]
    return [*scored, _details(points)]


def _scored(points: Sequence[CurvePoint], scorer: str, kind: str) -> Table:
    return Table(
        title=f"Samples, judged by {scorer} ({kind})",
        header=[
            *("model", "sampler", "steps", "forwards", "s/sample"),
            *("perplexity", "nats/token", "bits/byte", "entropy", "distinct-2"),
        ],
        rows=[
            [
                *_point_cells(point),
                *_cost_cells(point),
                *_perplexity_cells(point.perplexity_under(scorer)),
                _entropy_cell(point),
                _share(point.diversity.distinct[2]),
            ]
            for point in points
        ],
        note=NOTE,
    )


def _details(points: Sequence[CurvePoint]) -> Table:
    return Table(
        title="Samples, diversity",
        header=[
            *("model", "sampler", "steps", "forwards", "s/sample", "entropy"),
            *("distinct-1", "distinct-2", "distinct-3", "tokens", "different", "empty"),
        ],
        rows=[
            [
                *_point_cells(point),
                *_cost_cells(point),
                _entropy_cell(point),
                *(_share(share) for share in point.diversity.distinct.values()),
                f"{point.diversity.mean_tokens:.1f}",
                f"{point.diversity.different_fraction:.0%}",
                f"{point.diversity.num_empty:,}",
            ]
            for point in points
        ],
        note=DIVERSITY_NOTE,
    )


def _point_cells(point: CurvePoint) -> tuple[str, str, str]:
    steps = ABSENT if point.num_steps is None else f"{point.num_steps:,}"
    return point.model, point.sampler or ABSENT, steps


def _cost_cells(point: CurvePoint) -> tuple[str, str]:
    if point.cost is None:
        return ABSENT, ABSENT
    return f"{point.cost.num_forwards:.1f}", f"{point.cost.seconds:.4f}"


def _entropy_cell(point: CurvePoint) -> str:
    return f"{point.diversity.entropy_nats:.3f} ± {point.diversity.entropy_ci95:.3f}"


def _share(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.3f}"


def _perplexity_cells(found: Perplexity) -> tuple[str, str, str]:
    if found.perplexity is None:
        return ABSENT, ABSENT, ABSENT
    return (
        f"{found.perplexity:,.2f}",
        f"{found.nats_per_token:.3f} ± {found.nats_per_token_ci95:.3f}",
        f"{found.bits_per_byte:.3f} ± {found.bits_per_byte_ci95:.3f}",
    )


def reading(is_scored: bool) -> list[str]:
    """How to read the curve."""
    lines = [
        "Entropy and distinct-n depend on the length and the number of samples: compare them with "
        "the held-out line, which has as many sequences of the same length, not with other tables.",
        "Equal steps are not equal compute: models differ in size, samplers in forwards a step, "
        "and a block-causal forward covers a block. Compare at equal wall time, or at equal "
        "forwards of one model.",
        "Samples of temperature 0 without a prompt are one text again and again: see the column "
        "'different', without which an interval over samples means nothing.",
    ]
    if not is_scored:
        return ["Give --scorer ar:MODEL or masked:MODEL for perplexity.", *lines]
    return [
        "Perplexity says how well a scorer predicts what was written; text that repeats itself is "
        "easy to predict. It is worth something only at the entropy of held-out text, so both "
        "stand in one line; compare the frontier of both over temperatures "
        "(--samplers ancestral:temperature=0.8,ancestral:temperature=1).",
        "The text is tokenized anew by the scorer. Nats per token count the scorer's tokens; bits "
        "per byte are free of tokenizers. A masked scorer's number is a bound (NELBO), so it is "
        "not to be compared with an autoregressive scorer's; and a scorer prefers what was "
        "trained on its own data.",
        *lines,
    ]
