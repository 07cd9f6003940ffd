"""Configuration of benchmark tasks; the text under a field is its manual."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from student_trainer.tasks.code_tasks import CodeTaskOptions
from student_trainer.tasks.harness import HarnessOptions
from student_trainer.tasks.model_args import LmOptions, read_model_args
from student_trainer.tasks.options import ModelOptions
from student_trainer.tasks.run import TasksOptions
from student_trainer.tasks.sandbox.limits import SandboxLimits

_NO_MODEL = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksConfig:
    """Which benchmark tasks are put to the models, and how."""

    tasks: list[str] = field(default_factory=list)
    """Benchmark tasks, separated by commas: humaneval, humaneval_plus and mbpp, whose programs run
    in a sandbox, and any task, group or tag of lm-eval. They need no --data_path."""
    model_args: list[str] = field(default_factory=list)
    """How models answer tasks, KEY=VALUE separated by commas, as lm-eval passes it: steps=128,
    max_new_tokens=256, temperature=0, mc_num=128, ...; docs/evaluation_tasks.md has all."""
    num_fewshot: int | None = None
    """Solved examples in a task's prompt; else as the task has it."""
    limit: int | None = None
    """Only the first so many questions of each task, for a trial."""
    apply_chat_template: bool = False
    """Ask tasks as the tokenizer's chats go."""
    system_instruction: str | None = None
    """For tasks of lm-eval that are asked as chats."""
    include_path: str | None = None
    """A folder with lm-eval tasks of one's own, as YAML."""
    num_programs: int = 1
    """Programs for each problem of a code task."""
    pass_at: list[int] = field(default_factory=lambda: [1])
    """The k of each pass@k, separated by commas; none above --num_programs."""
    code_data: list[str] = field(default_factory=list)
    """TASK=FILE, separated by commas: JSON lines with the problems of a code task; else the hub, or
    its cache."""
    confirm_run_unsafe_code: bool = False
    """Run the programs that models write, in a sandbox. Without it no code task is asked."""
    accept_weaker_isolation: bool = False
    """Run them with limits alone where the kernel gives no namespaces."""
    program_timeout_s: float = 10.0
    """For each program."""
    num_workers: int = 2
    """Programs that run at a time."""

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks must be different from each other, got {self.tasks!r}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"--num_fewshot must be at least 0, got {self.num_fewshot}")

    def tasks_options(self, *, seed: int) -> TasksOptions:
        """Says how tasks are put.

        Args:
            seed: Of the choice of solved examples.

        Raises:
            ValueError: a value that is not allowed.
        """
        return TasksOptions(
            harness=HarnessOptions(
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                apply_chat_template=self.apply_chat_template,
                system_instruction=self.system_instruction,
                include_path=self.include_path,
                seed=seed,
            ),
            code=CodeTaskOptions(
                confirm_run_unsafe_code=self.confirm_run_unsafe_code,
                accept_weaker_isolation=self.accept_weaker_isolation,
                num_programs=self.num_programs,
                pass_at=tuple(self.pass_at),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                apply_chat_template=self.apply_chat_template,
                data=_pairs(self.code_data, name="--code_data"),
                limits=SandboxLimits(
                    wall_s=self.program_timeout_s, cpu_s=max(1, round(self.program_timeout_s))
                ),
                num_workers=self.num_workers,
            ),
        )

    def lm_options(self, *, seed: int, batch_size: int) -> LmOptions:
        """Says how models answer.

        Args:
            seed: Of masks and draws, where model_args names none.
            batch_size: Likewise.

        Raises:
            ValueError: an unknown name, a value that is not allowed, or a way of loading.
        """
        pairs = _pairs(self.model_args, name="--model_args")
        options = read_model_args(
            {"pretrained": _NO_MODEL, "seed": seed, "batch_size": batch_size, **pairs}
        )
        if options.model != ModelOptions(model=_NO_MODEL):
            raise ValueError(
                f"--model_args says how models answer, got {','.join(self.model_args)}; how they "
                "are loaded is said by --model PATH_OR_ID,key=value, --device and --dtype"
            )
        return options


def _pairs(texts: Sequence[str], *, name: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{name} takes KEY=VALUE, got {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs
