"""What the example found out: plain values, written as JSON beside the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from student_trainer.evaluation.agreement import KlToTeacher
from student_trainer.evaluation.intervals import PairedDifference


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sequences that a model wrote, judged."""

    framework_fraction: float
    pseudo_perplexity: float
    """The teacher's."""
    distinct_fraction: float
    example: str


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One of teacher, student and control."""

    name: str
    num_parameters: int
    nelbo: float
    """Held out, nats a residue."""
    nelbo_ci95: float
    kl: KlToTeacher | None
    """None for the teacher itself."""
    samples: Samples
    train_s: float | None
    tokens_per_s: float | None
    teacher_wait_s: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """The whole run."""

    quick: bool
    accuracies: dict[str, float]
    """The teacher's masked-token accuracy on human germline sequences, by share of masks."""
    num_train_sequences: int
    num_held_out_sequences: int
    num_dropped_sequences: int
    generate_s: float
    train_steps: int
    sequences_per_step: int
    server_tokens_per_s: float
    server_peak_mib: float
    models: Sequence[ModelResult]
    """Teacher, student, control."""
    difference: PairedDifference
    """NELBO of the student minus the control's, paired over held-out sequences."""
    total_s: float
