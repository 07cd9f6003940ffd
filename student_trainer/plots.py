"""Plots of the report, as PNG files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from student_trainer.report_model import ROLE_LABELS, DemoReport, ModelResult, Role

DPI = 150
SMOOTHING_FRACTION = 0.05  # of a curve's points, for its running mean
# Okabe and Ito's palette, told apart with every common colour blindness; markers and line styles
# say it twice.
COLOURS: dict[Role, str] = {
    "teacher": "#5f5f5f",
    "student": "#0072b2",
    "control_same_steps": "#d55e00",
    "control_same_time": "#009e73",
}
MARKERS: dict[Role, str] = {
    "teacher": "D",
    "student": "o",
    "control_same_steps": "s",
    "control_same_time": "^",
}
LINE_STYLES: dict[Role, str] = {
    "teacher": ":",
    "student": "-",
    "control_same_steps": "--",
    "control_same_time": "-.",
}
WAIT_COLOUR = "#cc79a7"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One file with the words that go with it."""

    path: Path
    title: str
    caption: str


def draw_plots(report: DemoReport, folder: Path) -> list[Plot]:
    """Draws every plot of the report below `folder`."""
    plots = []
    for name, (title, caption, draw) in PLOTS.items():
        path = folder / f"{name}.png"
        figure = draw(report)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=DPI, facecolor="white")
        plots.append(Plot(path=path, title=title, caption=caption))
    return plots


def draw_nelbo(report: DemoReport) -> Figure:
    """Bars of the held-out NELBO beside the student's paired differences."""
    figure, (left, right) = panels(height=2.9)
    for place, model in enumerate(report.models):
        mean, ci95 = model.nelbo.mean, model.nelbo.ci95
        left.barh(place, mean, xerr=ci95, color=COLOURS[model.role], height=0.62, capsize=3)
        left.annotate(
            f"{mean:.3f}", (mean + ci95, place), (5, 0), textcoords="offset points", va="center"
        )
    left.set_yticks(range(len(report.models)), [model.label for model in report.models])
    left.invert_yaxis()
    left.grid(visible=False, axis="y")
    left.set_xlim(right=1.2 * max(model.nelbo.mean + model.nelbo.ci95 for model in report.models))
    left.set_xlabel("held-out NELBO (nats/token)")
    others: list[Role] = [role for role in ROLE_LABELS if role != "student"]
    for place, role in enumerate(others):
        found = report.comparison(role)
        right.errorbar(
            found.mean, place, xerr=found.ci95, fmt=MARKERS[role], color=COLOURS[role], capsize=4
        )
        right.annotate(
            f"{found.relative:+.1%}", (found.mean, place), (0, 8), textcoords="offset points",
            ha="center",
        )  # fmt: skip
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(others)), [f"vs {ROLE_LABELS[role]}" for role in others])
    right.set_ylim(len(others) - 0.5, -0.7)
    right.margins(x=0.18)
    right.set_xlabel("student minus other, paired (nats/token)")
    return figure


def draw_curves(report: DemoReport) -> Figure:
    """Training loss against steps and against wall time."""
    figure, (left, right) = panels(height=3.6)
    for model in report.models:
        has_ce = all(point.ce is not None for point in model.curve)
        values = np.array(
            [point.ce if has_ce else point.loss for point in model.curve], dtype=float
        )
        steps = np.array([point.step for point in model.curve])
        seconds = np.array([point.seconds for point in model.curve])
        label = model.label if has_ce else f"{model.label} (whole loss)"
        for axes, places in ((left, steps), (right, seconds)):
            axes.plot(places, values, color=COLOURS[model.role], alpha=0.18, linewidth=0.8)
            axes.plot(
                places,
                _running_mean(values),
                color=COLOURS[model.role],
                linestyle=LINE_STYLES[model.role],
                label=label,
            )
    left.set_xlabel("optimizer step")
    right.set_xlabel("wall time (s)")
    left.set_ylabel("training cross-entropy (nats)")
    right.legend(frameon=False)
    return figure


def draw_kl(report: DemoReport) -> Figure:
    """Divergence from the teacher, and agreement with it, by the share of masked tokens."""
    figure, (left, right) = panels(height=3.4)
    for model in report.models:
        if model.kl_to_teacher is None:
            continue
        bins = model.kl_to_teacher.bins
        middles = [100 * (found.t_low + found.t_high) / 2 for found in bins]
        kl, agreement = (
            [found.kl_nats for found in bins],
            [100 * found.top1_agreement for found in bins],
        )
        for axes, values in ((left, kl), (right, agreement)):
            axes.plot(
                middles,
                values,
                color=COLOURS[model.role],
                marker=MARKERS[model.role],
                label=model.label,
            )
    left.set_ylabel("KL(teacher, model) (nats/position)")
    right.set_ylabel("same most probable token (%)")
    for axes in (left, right):
        axes.set_xlabel("masked tokens of the sequence (%)")
        axes.set_xlim(0, 100)
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    return figure


def draw_time(report: DemoReport) -> Figure:
    """Wall time of each training, split into own work and waiting for the teacher."""
    figure = Figure(figsize=(9.2, 2.7), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    for place, model in enumerate(report.models):
        work_s = model.train_s - model.teacher_wait_s
        axes.barh(place, work_s, color=COLOURS["student"], height=0.6)
        axes.barh(
            place, model.teacher_wait_s, left=work_s, color=WAIT_COLOUR, height=0.6, hatch="//",
            edgecolor="white",
        )  # fmt: skip
        axes.annotate(
            _time_label(model), (model.train_s, place), (5, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(report.models)), [model.label for model in report.models])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(right=1.22 * max(model.train_s for model in report.models))
    axes.set_xlabel("wall time of training (s)")
    handles = [axes.patches[0], axes.patches[1]]
    figure.legend(
        handles,
        ["own work", "waiting for the teacher"],
        frameon=False,
        loc="outside upper right",
        ncols=2,
    )
    return figure


PLOTS: dict[str, tuple[str, str, Callable[[DemoReport], Figure]]] = {
    "nelbo": (
        "Held-out likelihood",
        "Left: the bound itself. Right: the student's paired differences on the same sequences "
        "and masks: left of zero the student is better, and an interval that crosses zero is no "
        "difference. Intervals are 95 %.",
        draw_nelbo,
    ),
    "curves": (
        "Training",
        "Cross-entropy on the training batches, the part that all models have in common; the "
        "bold line is a running mean.",
        draw_curves,
    ),
    "kl": (
        "Agreement with the teacher",
        "By share of masked tokens, on held-out sequences. Agreement is what distillation "
        "trains for; it is not a quality by itself.",
        draw_kl,
    ),
    "time": (
        "Where the time goes",
        "Waiting is what the prefetch window could not hide.",
        draw_time,
    ),
}


def panels(*, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Makes a figure of two panels, tidied."""
    figure = Figure(figsize=(9.2, height), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes in panels:
        tidy(axes)
    return figure, panels


def tidy(axes: Axes) -> None:
    """Takes away what is no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Averages each value with its neighbours; the window narrows at both ends."""
    reach = int(len(values) * SMOOTHING_FRACTION / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _time_label(model: ModelResult) -> str:
    label = f"{model.train_s:.0f} s"
    return f"{label}, {model.teacher_wait_fraction:.0%} waiting" if model.teacher_wait_s else label
