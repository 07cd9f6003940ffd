"""Puts the tasks that lm-eval knows to a denoiser."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from masked_diffusion.families import Denoiser
from student_trainer.tasks.model_args import LmOptions
from student_trainer.tasks.scores import TaskScore

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SCORING_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""The output_type of tasks that ask for likelihoods."""


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """How lm-eval's tasks are asked."""

    num_fewshot: int | None = None
    """Solved examples in each prompt; None as the task says."""
    limit: int | None = None
    """Only so many questions of each task, for a trial."""
    apply_chat_template: bool = False
    """Put each question as a chat, in the words of the tokenizer's template."""
    system_instruction: str | None = None
    include_path: str | None = None
    """A folder with tasks of one's own, as YAML."""
    bootstrap_iters: int = 1000
    """Resamples behind the standard errors of metrics that are no means."""
    seed: int = 1234
    """Of the choice of solved examples."""


@dataclass(frozen=True, kw_only=True)
class HarnessResult:
    scores: tuple[TaskScore, ...]
    raw: Mapping[str, Any]
    """All that lm-eval returns, each question and answer in it."""


class UnsafeTaskError(ValueError):
    """A task of lm-eval that runs the model's programs in this very process."""


@dataclass(frozen=True, kw_only=True)
class HarnessTasks:
    """Tasks that lm-eval knows and that may be put to denoisers."""

    names: tuple[str, ...]
    manager: "TaskManager"
    options: HarnessOptions

    @property
    def scoring(self) -> list[str]:
        """Those of them that ask for likelihoods of texts."""
        configs = [config for name in self.names for config in _configs(name, self.manager)]
        return [c["task"] for c in configs if c.get("output_type") in SCORING_TYPES]


def prepare_harness_tasks(task_names: Sequence[str], options: HarnessOptions) -> HarnessTasks:
    """Finds tasks, groups and tags by their names, and sees to it that their data are here.

    Raises:
        UnsafeTaskError: a task that runs programs; those of ours, in a sandbox, go by
            `code_tasks.CODE_TASKS`.
        ValueError: an unknown task, data that cannot be had, or lm-eval is not installed.
    """
    manager = _task_manager(task_names, options.include_path)
    unknown = [name for name in task_names if name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"unknown task {unknown[0]!r}: lm-eval has no such task, group or tag, nor has "
            f"include_path={options.include_path}; `lm-eval ls tasks` lists them"
        )
    _refuse_unsafe(task_names, manager)
    _require_data(task_names, manager)
    return HarnessTasks(names=tuple(task_names), manager=manager, options=options)


def run_harness_tasks(
    denoiser: Denoiser, tasks: HarnessTasks, *, lm_options: LmOptions
) -> HarnessResult:
    """Puts tasks to a denoiser.

    Args:
        denoiser: In evaluation mode, with a tokenizer.
        tasks: Which, and how they are put.
        lm_options: How it generates and scores.

    Raises:
        ValueError: a setting of a task that cannot be honoured.
    """
    # Only where lm-eval is there.
    from lm_eval import simple_evaluate  # noqa: PLC0415

    from student_trainer.tasks.denoiser_lm import DenoiserLM  # noqa: PLC0415

    options = tasks.options
    raw = simple_evaluate(
        model=DenoiserLM.of(denoiser, lm_options),
        tasks=list(tasks.names),
        task_manager=tasks.manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.apply_chat_template,
        system_instruction=options.system_instruction,
        bootstrap_iters=options.bootstrap_iters,
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
        confirm_run_unsafe_code=False,
    )
    return HarnessResult(scores=tuple(_scores(raw)), raw=raw)


def _task_manager(task_names: Sequence[str], include_path: str | None) -> "TaskManager":
    """Indexes the user's own tasks, and lm-eval's 14 000 only if one of them is asked for."""
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"task {task_names[0]!r} is lm-eval's, which is not installed: "
            "pip install 'dllm-distill[lm-eval]'"
        ) from error
    if include_path is not None:
        if not os.path.isdir(include_path):
            raise ValueError(f"include_path must be a folder of YAML files, got {include_path!r}")
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(name in own.all_tasks for name in task_names):
            return own
    return TaskManager(include_path=include_path)


def _refuse_unsafe(task_names: Sequence[str], manager: "TaskManager") -> None:
    """Looks at tasks before any is loaded: some run a program as soon as they are."""
    for name in task_names:
        for config in _configs(name, manager):
            if config.get("unsafe_code"):
                raise UnsafeTaskError(
                    f"task {config['task']!r} of lm-eval runs the model's programs inside this "
                    "process, which is not done here; humaneval and mbpp of our own run them in a "
                    "sandbox"
                )


def _require_data(task_names: Sequence[str], manager: "TaskManager") -> None:
    """Fetches what tasks need: without it they would fail after hours of other work."""
    for name in task_names:
        try:
            manager.load(name)
        except OSError as error:
            raise ValueError(f"the data of task {name!r} cannot be had: {error}") from error


def _configs(name: str, manager: "TaskManager") -> Iterator[Mapping[str, Any]]:
    """Yields the config of a task, or of all tasks of a group or tag; groups may be nested."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    children = config.get("task")
    if isinstance(children, list):
        for child in children:
            if isinstance(child, str):
                yield from _configs(child, manager)
            else:
                yield child
                yield from _configs(str(child.get("task")), manager)
    elif entry.tags and children is None:
        yield from (c for child in sorted(entry.tags) for c in _configs(child, manager))
    else:
        yield config


def _scores(raw: Mapping[str, Any]) -> Iterator[TaskScore]:
    for task, metrics in {**raw["results"], **raw.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            yield TaskScore(
                task=task,
                metric=metric if filter_name == "none" else f"{metric}/{filter_name}",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                num_questions=raw["n-samples"].get(task, {}).get("effective"),
                higher_is_better=raw["higher_is_better"].get(task, {}).get(metric),
            )
