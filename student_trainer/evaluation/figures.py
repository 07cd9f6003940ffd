"""Figures of the evaluations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from student_trainer.evaluation.agreement import KlBin, KlToTeacher
from student_trainer.evaluation.curve_point import MAX_EXPONENT, CurvePoint
from student_trainer.evaluation.infilling import InfillingResult
from student_trainer.plots import panels, tidy

if TYPE_CHECKING:
    from student_trainer.evaluation.likelihood_evaluation import Difference, Likelihood

# Okabe and Ito's palette, told apart with every common colour blindness; markers say it twice.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#5f5f5f", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", ":", "-.")
_WIDTH = 9.2
_LINE_HEIGHT = 0.42
_LEGEND_LETTERS = 100  # of one line of a legend, spaces and handles left out


def likelihood(
    found: Sequence["Likelihood"], differences: Sequence["Difference"], *, names: Sequence[str]
) -> Figure:
    """Bars of the bound, and paired differences beside them.

    Args:
        found: Of each model.
        differences: None, or of pairs of models.
        names: All models of the evaluation: a model has one colour in every figure.
    """
    height = 1.3 + _LINE_HEIGHT * max(len(found), len(differences), 2)
    if not differences:
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        left, right = figure.subplots(), None
        tidy(left)
    else:
        figure, (left, right) = panels(height=height)
    for place, one in enumerate(found):
        left.barh(
            place, one.nats_per_token, xerr=one.ci95, color=colour(one.model, names),
            height=0.62, capsize=3,
        )  # fmt: skip
        left.annotate(
            f"{one.nats_per_token:.3f}",
            (one.nats_per_token + one.ci95, place),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    left.set_yticks(range(len(found)), [one.model for one in found])
    left.set_ylim(len(found) - 0.4, -0.6)
    left.grid(visible=False, axis="y")
    left.set_xlim(right=1.2 * max(one.nats_per_token + one.ci95 for one in found))
    left.set_xlabel("held-out NELBO (nats/token)")
    if right is None:
        return figure
    for place, pair in enumerate(differences):
        right.errorbar(
            pair.difference.mean, place, xerr=pair.difference.ci95, fmt="o", color="black",
            capsize=4,
        )  # fmt: skip
        right.annotate(
            f"{pair.difference.relative:+.1%}",
            (pair.difference.mean, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
        )
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(
        range(len(differences)), [f"{pair.model} minus {pair.minus}" for pair in differences]
    )
    right.set_ylim(len(differences) - 0.5, -0.8)
    right.margins(x=0.18)
    right.set_xlabel("paired difference (nats/token)")
    return figure


def agreement(found: Mapping[str, KlToTeacher], *, names: Sequence[str]) -> Figure:
    """Divergence from the teacher, and agreement with it, by the share of masked tokens."""
    figure, (left, right) = panels(height=3.5)
    series: list[tuple[Axes, Callable[[KlBin], float], Callable[[KlBin], float | None]]] = [
        (left, lambda one: one.kl_nats, lambda one: one.kl_ci95),
        (right, lambda one: 100 * one.top1_agreement, lambda one: _percent(one.top1_ci95)),
    ]
    for place, (name, kl) in enumerate(found.items()):
        # Bars of different models would hide each other.
        nudge = 0.8 * (place - (len(found) - 1) / 2)
        middles = [50 * (one.t_low + one.t_high) + nudge for one in kl.bins]
        for axes, value, half_width in series:
            axes.errorbar(
                middles,
                [value(one) for one in kl.bins],
                yerr=[half_width(one) or 0.0 for one in kl.bins],
                color=colour(name, names),
                marker=MARKERS[names.index(name) % len(MARKERS)],
                capsize=2,
                label=name,
            )
    left.set_ylabel("KL(teacher, model) (nats/position)")
    right.set_ylabel("same most probable token (%)")
    for axes in (left, right):
        axes.set_xlabel("masked tokens of the sequence (%)")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
    left.legend(frameon=False)
    return figure


def infilling(found: Mapping[str, Sequence[InfillingResult]], *, names: Sequence[str]) -> Figure:
    """Exact match by span length."""
    figure = Figure(figsize=(_WIDTH * 0.7, 3.5), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    spans = sorted({one.span_length for results in found.values() for one in results})
    for place, (name, results) in enumerate(found.items()):
        nudge = 0.08 * (place - (len(found) - 1) / 2)
        shares = np.array([100 * one.exact_match for one in results])
        low = np.array([100 * one.exact_match_low for one in results])
        high = np.array([100 * one.exact_match_high for one in results])
        axes.errorbar(
            [spans.index(one.span_length) + nudge for one in results],
            shares,
            # Rounding could make a bar -1e-15 long.
            yerr=np.maximum([shares - low, high - shares], 0),
            color=colour(name, names),
            marker=MARKERS[place % len(MARKERS)],
            linestyle=LINE_STYLES[place % len(LINE_STYLES)],
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(spans)), [str(length) for length in spans])
    axes.set_xlabel("masked span (tokens)")
    axes.set_ylabel("exact match (%)")
    # Below zero, so that a marker at zero is seen whole.
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    axes.legend(frameon=False)
    return figure


def samples(points: Sequence[CurvePoint], *, scorer: str | None, names: Sequence[str]) -> Figure:
    """Perplexity never alone: with entropy, forwards and wall time."""
    num_rows = 2 if scorer else 1
    figure = Figure(figsize=(_WIDTH, 3.6 * num_rows + 0.5), layout="constrained")
    grid: list[Axes] = list(figure.subplots(num_rows, 2).flat)
    for axes in grid:
        tidy(axes)
    if scorer:
        by_forwards, by_seconds, entropy, frontier = grid
        _draw(by_forwards, points, _forwards, _perplexity(scorer), names)
        _draw(by_seconds, points, _seconds, _perplexity(scorer), names)
        _draw(entropy, points, _forwards, _entropy, names)
        _draw(frontier, points, _entropy, _perplexity(scorer), names)
        for axes in (by_forwards, by_seconds, frontier):
            axes.set_ylabel("perplexity (scorer's tokens)")
            _log_scale(axes, "y")
        frontier.set_xlabel("entropy of a sample (nats)")
    else:
        entropy, by_seconds = grid
        _draw(entropy, points, _forwards, _entropy, names)
        _draw(by_seconds, points, _seconds, _entropy, names)
        by_seconds.set_ylabel("entropy of a sample (nats)")
    entropy.set_ylabel("entropy of a sample (nats)")
    by_seconds.set_xlabel("wall time of a sample (s)")
    for axes in {entropy, grid[0]}:
        axes.set_xlabel("forwards of a sample")
        _log_scale(axes, "x")
    _log_scale(by_seconds, "x")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        fontsize="small",
        loc="outside upper center",
        ncols=max(1, min(3, _LEGEND_LETTERS // max(map(len, labels)))),
    )
    return figure


_Value = tuple[float, float, float]
"""A value and the ends of its interval, all equal where it has none."""


def _forwards(point: CurvePoint) -> _Value | None:
    return None if point.cost is None else (point.cost.num_forwards,) * 3


def _seconds(point: CurvePoint) -> _Value | None:
    return None if point.cost is None else (point.cost.seconds,) * 3


def _entropy(point: CurvePoint) -> _Value:
    mean, half_width = point.diversity.entropy_nats, point.diversity.entropy_ci95
    return mean, mean - half_width, mean + half_width


def _perplexity(scorer: str) -> Callable[[CurvePoint], _Value | None]:
    def value(point: CurvePoint) -> _Value | None:
        found = point.perplexity_under(scorer)
        if found.perplexity is None or found.nats_per_token_ci95 is None:
            return None
        # An interval of nats is one of factors.
        factor = math.exp(min(found.nats_per_token_ci95, MAX_EXPONENT))
        return found.perplexity, found.perplexity / factor, found.perplexity * factor

    return value


def _bars(values: Sequence[_Value]) -> np.ndarray:
    """How far the intervals reach down and up: [2, N]."""
    middles, lows, highs = np.array(values).T
    return np.array([middles - lows, highs - middles])


def _draw(
    axes: Axes,
    points: Sequence[CurvePoint],
    x: Callable[[CurvePoint], _Value | None],
    y: Callable[[CurvePoint], _Value | None],
    names: Sequence[str],
) -> None:
    """A line for each model and sampler, over its steps; held-out text is a line or a star."""
    samplers = list(dict.fromkeys(point.sampler for point in points if point.sampler))
    for model in names:
        for sampler in samplers:
            found = [p for p in points if (p.model, p.sampler) == (model, sampler)]
            pairs = [(x(point), y(point)) for point in found]
            drawn = [(a, b) for a, b in pairs if a is not None and b is not None]
            if not drawn:
                continue
            place = samplers.index(sampler)
            axes.errorbar(
                [a[0] for a, _ in drawn],
                [b[0] for _, b in drawn],
                xerr=_bars([a for a, _ in drawn]),
                yerr=_bars([b for _, b in drawn]),
                color=colour(model, names),
                marker=MARKERS[place % len(MARKERS)],
                linestyle=LINE_STYLES[place % len(LINE_STYLES)],
                capsize=2,
                label=f"{model}, {sampler}",
            )
    for point in points:
        if point.sampler:
            continue
        at_x, at_y = x(point), y(point)
        if at_y is None:
            continue
        if at_x is None:
            axes.axhline(at_y[0], color="black", linewidth=1, label=point.model)
        else:
            axes.plot(at_x[0], at_y[0], "*", color="black", markersize=11, label=point.model)


def _log_scale(axes: Axes, which: str) -> None:
    """A logarithmic axis whose numbers are plain."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", subs=[2, 3, 5])
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axis.set_major_formatter(plain)
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    # Over less than two decades the powers of ten alone would be too few numbers to read by.
    axis.set_minor_formatter(plain if high < 100 * low else NullFormatter())


def colour(name: str, names: Sequence[str]) -> str:
    """The one colour of a model in every figure; `names` are all models of the evaluation."""
    return COLOURS[names.index(name) % len(COLOURS)]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
