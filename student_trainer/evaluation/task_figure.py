"""The figure of benchmark tasks."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from student_trainer.evaluation.figures import colour
from student_trainer.evaluation.intervals import NORMAL_QUANTILE
from student_trainer.plots import tidy
from student_trainer.tasks.scores import TaskScore

MAX_GROUPS = 24
"""Scores in the figure: a benchmark may have hundreds of subtasks."""
FIRST_ONLY = f", the first {MAX_GROUPS} of the table"

_Key = tuple[str, str]


def tasks(scores: Mapping[str, Sequence[TaskScore]], *, names: Sequence[str]) -> Figure | None:
    """Bars of the scores that are shares, models side by side under each task.

    Args:
        scores: Of each model.
        names: All models of the evaluation: a model has one colour in every figure.

    Returns:
        None where no score is a share.
    """
    groups = _groups(scores)[:MAX_GROUPS]
    if not groups:
        return None
    thickness = 0.8 / len(scores)
    height = 1.3 + len(groups) * max(0.45, 0.24 * len(scores))
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    for place, (name, found) in enumerate(scores.items()):
        drawn = {_key(score): score for score in found}
        rows = [(row, drawn[key]) for row, key in enumerate(groups) if key in drawn]
        axes.barh(
            [row + (place - (len(scores) - 1) / 2) * thickness for row, _ in rows],
            [100 * score.value for _, score in rows],
            xerr=[100 * NORMAL_QUANTILE * _known(score.stderr) for _, score in rows],
            height=0.9 * thickness,
            color=colour(name, names),
            capsize=2,
            label=name,
        )
    axes.set_yticks(range(len(groups)), [f"{task}, {metric}" for task, metric in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("score (%)")
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


def is_cut(scores: Mapping[str, Sequence[TaskScore]]) -> bool:
    """Tells whether there are more scores than the figure holds."""
    return len(_groups(scores)) > MAX_GROUPS


def _groups(scores: Mapping[str, Sequence[TaskScore]]) -> list[_Key]:
    shares = (score for found in scores.values() for score in found if _is_share(score))
    return list(dict.fromkeys(_key(score) for score in shares))


def _key(score: TaskScore) -> _Key:
    return score.task, score.metric


def _is_share(score: TaskScore) -> bool:
    return score.higher_is_better is True and 0 <= score.value <= 1


def _known(stderr: float | None) -> float:
    return 0.0 if stderr is None or math.isnan(stderr) else stderr
