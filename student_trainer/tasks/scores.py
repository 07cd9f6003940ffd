"""What a task comes to."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One figure of one task."""

    task: str
    metric: str
    """As acc, exact_match or pass@1; with lm-eval's filter behind a slash where there is one."""
    value: float
    stderr: float | None
    """Standard error over the questions; None where it is not known."""
    num_questions: int | None
    """None for a group of tasks."""
    higher_is_better: bool | None
