"""Puts any tasks to one denoiser: those of lm-eval, and our code tasks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from masked_diffusion.families import Denoiser
from student_trainer.tasks.code_tasks import (
    CodeTaskOptions,
    CodeTaskResult,
    prepare_code_task,
    run_code_task,
)
from student_trainer.tasks.harness import HarnessOptions, HarnessResult, run_harness_tasks
from student_trainer.tasks.model_args import LmOptions
from student_trainer.tasks.problems import CODE_TASKS
from student_trainer.tasks.scores import TaskScore
from student_trainer.tasks.text_denoiser import TextDenoiser


@dataclass(frozen=True, kw_only=True)
class TasksResult:
    """What all tasks came to: those of lm-eval, then the code tasks."""

    scores: tuple[TaskScore, ...]
    code_tasks: tuple[CodeTaskResult, ...]
    harness: HarnessResult | None

    def as_dict(self) -> dict[str, Any]:
        """Figures, each program with its outcome, and all that lm-eval returned."""
        return {
            "scores": [asdict(score) for score in self.scores],
            "code_tasks": [asdict(result) for result in self.code_tasks],
            "lm_eval": None if self.harness is None else self.harness.raw,
        }


@dataclass(frozen=True, kw_only=True)
class TasksOptions:
    """How tasks are put; the denoiser's own options are `LmOptions`."""

    harness: HarnessOptions = field(default_factory=HarnessOptions)
    code: CodeTaskOptions = field(default_factory=CodeTaskOptions)


def run_tasks(
    denoiser: Denoiser, task_names: Sequence[str], *, lm_options: LmOptions, options: TasksOptions
) -> TasksResult:
    """Runs tasks by name: CODE_TASKS are ours, and all others lm-eval's.

    Args:
        denoiser: In evaluation mode, with a tokenizer.
        task_names: Tasks, and groups and tags of lm-eval.
        lm_options: How the denoiser generates and scores; its `model` is not read.
        options: How the tasks are put.

    Raises:
        ValueError: unknown tasks, unusable options or data, programs that were not confirmed, or
            lm-eval is not installed.
        SandboxError: see `run_code_task`.
    """
    if not task_names:
        raise ValueError("no task is named")
    code_names = [name for name in task_names if name in CODE_TASKS]
    harness_names = [name for name in task_names if name not in CODE_TASKS]
    for name in code_names:
        prepare_code_task(name, options.code)
    harness = None
    if harness_names:
        harness = run_harness_tasks(denoiser, lm_options, harness_names, options.harness)
    texts = TextDenoiser(denoiser, lm_options)
    code_tasks = tuple(run_code_task(texts, name, options.code) for name in code_names)
    return TasksResult(
        scores=(
            *(() if harness is None else harness.scores),
            *(score for result in code_tasks for score in result.scores),
        ),
        code_tasks=code_tasks,
        harness=harness,
    )
