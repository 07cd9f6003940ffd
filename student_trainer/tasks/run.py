"""Puts any tasks to one denoiser: those of lm-eval, and our code tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from masked_diffusion.families import Denoiser
from student_trainer.tasks.code_tasks import (
    CodeTaskOptions,
    CodeTaskResult,
    PreparedCodeTask,
    prepare_code_task,
    run_code_task,
)
from student_trainer.tasks.harness import (
    HarnessOptions,
    HarnessResult,
    HarnessTasks,
    prepare_harness_tasks,
    run_harness_tasks,
)
from student_trainer.tasks.model_args import LmOptions
from student_trainer.tasks.problems import CODE_TASKS
from student_trainer.tasks.scores import TaskScore
from student_trainer.tasks.text_denoiser import TextDenoiser


@dataclass(frozen=True, kw_only=True)
class TasksOptions:
    """How tasks are put; the denoiser's own options are `LmOptions`."""

    harness: HarnessOptions = field(default_factory=HarnessOptions)
    code: CodeTaskOptions = field(default_factory=CodeTaskOptions)


@dataclass(frozen=True, kw_only=True)
class PreparedTasks:
    """Tasks that can be put to any number of denoisers."""

    harness: HarnessTasks | None
    code_tasks: tuple[PreparedCodeTask, ...]


@dataclass(frozen=True, kw_only=True)
class TasksResult:
    """What all tasks came to: those of lm-eval, then the code tasks."""

    scores: tuple[TaskScore, ...]
    code_tasks: tuple[CodeTaskResult, ...]
    harness: HarnessResult | None


def prepare_tasks(task_names: Sequence[str], options: TasksOptions) -> PreparedTasks:
    """Finds tasks by name, CODE_TASKS ours and all others lm-eval's, and what running them needs.

    Args:
        task_names: Tasks, and groups and tags of lm-eval.
        options: How the tasks are put.

    Raises:
        ValueError: unknown tasks, unusable options or data, programs that were not confirmed, or
            lm-eval is not installed.
        SandboxError: see `prepare_code_task`.
    """
    if not task_names:
        raise ValueError("no task is named")
    code_names = [name for name in task_names if name in CODE_TASKS]
    harness_names = [name for name in task_names if name not in CODE_TASKS]
    code_tasks = tuple(prepare_code_task(name, options.code) for name in code_names)
    harness = prepare_harness_tasks(harness_names, options.harness) if harness_names else None
    return PreparedTasks(harness=harness, code_tasks=code_tasks)


def run_tasks(denoiser: Denoiser, tasks: PreparedTasks, *, lm_options: LmOptions) -> TasksResult:
    """Puts tasks to a denoiser.

    Args:
        denoiser: In evaluation mode, with a tokenizer.
        tasks: Which, and how they are put.
        lm_options: How the denoiser generates and scores; its `model` is not read.

    Raises:
        ValueError: a setting that this denoiser cannot honour.
        SandboxError: a sandbox that broke.
    """
    harness = None
    if tasks.harness is not None:
        harness = run_harness_tasks(denoiser, tasks.harness, lm_options=lm_options)
    texts = TextDenoiser(denoiser, lm_options)
    code_tasks = tuple(run_code_task(texts, task) for task in tasks.code_tasks)
    return TasksResult(
        scores=(
            *(() if harness is None else harness.scores),
            *(score for result in code_tasks for score in result.scores),
        ),
        code_tasks=code_tasks,
        harness=harness,
    )
