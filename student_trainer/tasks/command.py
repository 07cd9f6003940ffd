"""The command line of tasks: arguments, and what becomes of them."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from student_trainer.tasks.code_tasks import CodeTaskOptions
from student_trainer.tasks.harness import HarnessOptions
from student_trainer.tasks.run import TasksOptions
from student_trainer.tasks.sandbox.limits import SandboxLimits
from student_trainer.tasks.scores import TaskScore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which tasks are put, and how; `tasks_options` reads it back."""
    group = parser.add_argument_group("tasks")
    group.add_argument(
        "--tasks",
        type=_split,
        default=[],
        help="names, separated by commas: humaneval, humaneval_plus, mbpp, and any of lm-eval's",
    )
    group.add_argument("--num_fewshot", type=int, help="solved examples in a prompt")
    group.add_argument("--limit", type=int, help="only so many questions of each task")
    group.add_argument(
        "--apply_chat_template", action="store_true", help="ask as the tokenizer's chats go"
    )
    group.add_argument("--system_instruction", help="for tasks of lm-eval that are asked as chats")
    group.add_argument("--include_path", help="a folder with lm-eval tasks of one's own")
    group.add_argument("--num_samples", type=int, default=1, help="programs for each problem")
    group.add_argument(
        "--pass_at", type=_split_numbers, default=(1,), metavar="K,...", help="the k of pass@k"
    )
    group.add_argument(
        "--code_data",
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="JSON lines with the problems of a code task; else the hub or its cache",
    )
    group.add_argument(
        "--confirm_run_unsafe_code",
        action="store_true",
        help="run the programs that the denoiser writes, in a sandbox",
    )
    group.add_argument(
        "--accept_weaker_isolation",
        action="store_true",
        help="run them with limits alone where the kernel gives no namespaces",
    )
    group.add_argument("--program_timeout_s", type=float, default=10.0, help="for each program")
    group.add_argument("--num_workers", type=int, default=2, help="programs at a time")


def tasks_options(arguments: argparse.Namespace) -> TasksOptions:
    """Reads what `add_arguments` added.

    Raises:
        ValueError: a value that is not allowed.
    """
    return TasksOptions(
        harness=HarnessOptions(
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.apply_chat_template,
            system_instruction=arguments.system_instruction,
            include_path=arguments.include_path,
        ),
        code=CodeTaskOptions(
            confirm_run_unsafe_code=arguments.confirm_run_unsafe_code,
            accept_weaker_isolation=arguments.accept_weaker_isolation,
            num_samples=arguments.num_samples,
            k=arguments.pass_at,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.apply_chat_template,
            data=read_pairs(arguments.code_data, name="--code_data"),
            limits=SandboxLimits(
                wall_s=arguments.program_timeout_s, cpu_s=max(1, round(arguments.program_timeout_s))
            ),
            num_workers=arguments.num_workers,
        ),
    )


def read_pairs(texts: Sequence[str], *, name: str) -> dict[str, str]:
    """Reads KEY=VALUE, one or several in a text with commas between.

    Raises:
        ValueError: a text without =.
    """
    pairs = {}
    for pair in (part for text in texts for part in text.split(",") if part):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{name} takes KEY=VALUE, got {pair!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def table(scores: Sequence[TaskScore]) -> str:
    """Lays scores out in columns."""
    rows = [("task", "metric", "value", "stderr", "questions")]
    rows += [
        (
            score.task,
            score.metric,
            f"{score.value:.4f}",
            "-" if score.stderr is None else f"{score.stderr:.4f}",
            "-" if score.num_questions is None else str(score.num_questions),
        )
        for score in scores
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def plain(value: Any) -> Any:
    """Answers json.dumps for a value that it does not know: its parts, its number or its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _split_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _split(text))
