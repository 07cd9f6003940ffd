"""Bars of task scores: which are drawn, and how long they are."""

from typing import Any

import pytest
from matplotlib.patches import Rectangle

from student_trainer.evaluation import task_figure
from student_trainer.tasks.scores import TaskScore


def score(task, value, **more):
    facts: dict[str, Any] = {
        "metric": "acc",
        "stderr": 0.01,
        "num_questions": 9,
        "higher_is_better": True,
    }
    return TaskScore(task=task, value=value, **(facts | more))


def bars(figure):
    (axes,) = figure.axes
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [pytest.approx(patch.get_width()) for patch in found]


def test_models_stand_under_each_task_and_what_is_no_share_is_left_out():
    perplexity = score("a", 12.5, metric="word_perplexity", higher_is_better=False)
    scores = {
        "teacher": [score("a", 0.5), perplexity, score("b", 0.25, stderr=None)],
        "student": [score("a", 0.4, stderr=float("nan")), perplexity],
    }

    figure = task_figure.tasks(scores, names=["teacher", "student"])

    assert figure is not None
    assert bars(figure) == [50, 25, 40]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a, acc", "b, acc"]
    assert not task_figure.is_cut(scores)


def test_there_is_no_figure_without_a_share():
    scores = {"m": [score("a", 3.0), score("b", 0.5, higher_is_better=False)]}
    assert task_figure.tasks(scores, names=["m"]) is None


def test_a_benchmark_of_many_subtasks_is_cut_and_that_is_known():
    scores = {"m": [score(f"t{index}", 0.5) for index in range(task_figure.MAX_GROUPS + 1)]}
    figure = task_figure.tasks(scores, names=["m"])
    assert figure is not None
    assert len(bars(figure)) == task_figure.MAX_GROUPS
    assert task_figure.is_cut(scores)
