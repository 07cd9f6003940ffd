"""Puts programming problems to a denoiser and runs its answers in a sandbox: pass@k."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from student_trainer.tasks.pass_at_k import pass_at_k, standard_error
from student_trainer.tasks.problem_files import read_rows
from student_trainer.tasks.problems import CODE_TASKS, CodeTask, Problem
from student_trainer.tasks.sandbox.isolation import Isolation
from student_trainer.tasks.sandbox.limits import SandboxLimits
from student_trainer.tasks.sandbox.runner import Outcome, find_isolation, run_sandboxed
from student_trainer.tasks.scores import TaskScore
from student_trainer.tasks.text_denoiser import TextDenoiser

logger = logging.getLogger(__name__)

FENCE = "```"
"""Ends the program in a chat's answer."""


@dataclass(frozen=True, kw_only=True)
class CodeTaskOptions:
    """How problems are asked, and how their answers are run."""

    confirm_run_unsafe_code: bool = False
    """Run programs that the denoiser wrote and nobody has read. Without it nothing is asked."""
    accept_weaker_isolation: bool = False
    """Run them also where the kernel gives no namespaces: see `sandbox.isolation.ISOLATIONS`."""
    num_programs: int = 1
    """Answers to each problem."""
    pass_at: tuple[int, ...] = (1,)
    """The k of each pass@k; none above num_programs."""
    num_fewshot: int | None = None
    """Problems shown solved before each; None as the task has it."""
    limit: int | None = None
    """Only the first so many problems, for a trial."""
    apply_chat_template: bool = False
    """Ask in the words of the tokenizer's chat template."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Task -> file of JSON lines with its problems; others come from the hub or its cache."""
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    num_workers: int = 2
    """Programs that run at a time."""

    def __post_init__(self) -> None:
        if not self.pass_at or min(self.pass_at) < 1 or max(self.pass_at) > self.num_programs:
            raise ValueError(
                f"pass_at must lie in [1, num_programs={self.num_programs}], got "
                f"{list(self.pass_at)}"
            )
        for name in ("num_workers", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        unknown = [name for name in self.data if name not in CODE_TASKS]
        if unknown:
            raise ValueError(
                f"code_data is for unknown task {unknown[0]!r}; known: {', '.join(CODE_TASKS)}"
            )


@dataclass(frozen=True, kw_only=True)
class PreparedCodeTask:
    """A task that can be put to denoisers: its problems are read, and there is a sandbox."""

    name: str
    problems: tuple[Problem, ...]
    isolation: Isolation
    options: CodeTaskOptions


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One answer and what became of it."""

    answer: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class SolvedProblem:
    task_id: str
    attempts: tuple[Attempt, ...]

    @property
    def num_passed(self) -> int:
        return sum(attempt.outcome.verdict == "passed" for attempt in self.attempts)


@dataclass(frozen=True, kw_only=True)
class CodeTaskResult:
    task: str
    scores: tuple[TaskScore, ...]
    isolation: Isolation
    """In which the programs ran."""
    distinct_fraction: float
    """Different answers to a problem over answers; 1 / num_programs says that all were alike, and
    then pass@k is pass@1."""
    problems: tuple[SolvedProblem, ...]

    @property
    def verdicts(self) -> Mapping[str, int]:
        """Counts answers by verdict."""
        return Counter(a.outcome.verdict for p in self.problems for a in p.attempts)


def prepare_code_task(name: str, options: CodeTaskOptions) -> PreparedCodeTask:
    """Finds out all that could hinder a task before hours of sampling are spent on it.

    Raises:
        ValueError: an unknown task, unusable data, or programs were not confirmed.
        SandboxError: no isolation that is accepted.
    """
    if name not in CODE_TASKS:
        raise ValueError(f"unknown code task {name!r}; known: {', '.join(CODE_TASKS)}")
    if not options.confirm_run_unsafe_code:
        raise ValueError(
            f"task {name} runs programs that the denoiser writes; give --confirm_run_unsafe_code "
            "to let them run, in a sandbox"
        )
    isolation = find_isolation(accept_weaker=options.accept_weaker_isolation)
    problems = _problems(CODE_TASKS[name], options, path=options.data.get(name))
    return PreparedCodeTask(
        name=name, problems=tuple(problems), isolation=isolation, options=options
    )


def run_code_task(texts: TextDenoiser, prepared: PreparedCodeTask) -> CodeTaskResult:
    """Asks, runs the answers, counts.

    Raises:
        SandboxError: a sandbox that broke.
    """
    name, problems, options = prepared.name, prepared.problems, prepared.options
    logger.info(
        "asking task=%s num_problems=%d isolation=%s", name, len(problems), prepared.isolation
    )
    answers = _ask(texts, CODE_TASKS[name], problems, options)
    solved = tuple(_solve(problems, answers, options, prepared.isolation))
    distinct = sum(len({a.answer for a in problem.attempts}) for problem in solved)
    return CodeTaskResult(
        task=name,
        scores=tuple(_score(name, solved, k) for k in options.pass_at),
        isolation=prepared.isolation,
        distinct_fraction=distinct / (len(solved) * options.num_programs),
        problems=solved,
    )


def _problems(task: CodeTask, options: CodeTaskOptions, *, path: str | None) -> list[Problem]:
    num_fewshot = options.num_fewshot
    if num_fewshot is None:
        num_fewshot = 0 if options.apply_chat_template else task.default_num_fewshot
    return task.read(read_rows(task, path), num_fewshot)[: options.limit]


def _ask(
    texts: TextDenoiser, task: CodeTask, problems: Sequence[Problem], options: CodeTaskOptions
) -> list[str]:
    """Gets num_programs answers to each problem, those to one problem side by side."""
    until = (FENCE,) if options.apply_chat_template else task.until
    asked = {"until": list(until), "max_gen_toks": task.max_new_tokens}
    prompts = [
        _chat(texts, problem) if options.apply_chat_template else problem.prompt
        for problem in problems
    ]
    requests = [(prompt, asked) for prompt in prompts for _ in range(options.num_programs)]
    return texts.generate_texts(requests)


def _chat(texts: TextDenoiser, problem: Problem) -> str:
    messages = [
        {"role": "user", "content": problem.message},
        {"role": "assistant", "content": problem.answer_begin},
    ]
    return texts.apply_chat_template(messages, add_generation_prompt=False)


def _solve(
    problems: Sequence[Problem],
    answers: Sequence[str],
    options: CodeTaskOptions,
    isolation: Isolation,
) -> list[SolvedProblem]:
    size = options.num_programs
    asked = [problem for problem in problems for _ in range(size)]
    programs = [problem.program(answer) for problem, answer in zip(asked, answers, strict=True)]

    def run(program: str) -> Outcome:
        return run_sandboxed(program, limits=options.limits, isolation=isolation)

    # Equal programs run once: samples at a low temperature often are.
    distinct = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(options.num_workers) as pool:
        outcomes = dict(zip(distinct, pool.map(run, distinct), strict=True))
    attempts = [
        Attempt(answer=answer, outcome=outcomes[program])
        for answer, program in zip(answers, programs, strict=True)
    ]
    return [
        SolvedProblem(
            task_id=problem.task_id, attempts=tuple(attempts[index * size : (index + 1) * size])
        )
        for index, problem in enumerate(problems)
    ]


def _score(name: str, solved: Sequence[SolvedProblem], k: int) -> TaskScore:
    values = [pass_at_k(len(p.attempts), p.num_passed, k) for p in solved]
    return TaskScore(
        task=name,
        metric=f"pass@{k}",
        value=sum(values) / len(values),
        stderr=standard_error(values),
        num_questions=len(values),
        higher_is_better=True,
    )
