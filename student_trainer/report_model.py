"""What the demo's report says: one tree of plain values, filled by the demo, written as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from student_trainer.evaluation.agreement import KlToTeacher
from student_trainer.evaluation.intervals import PairedDifference

Role = Literal["teacher", "student", "control_same_steps", "control_same_time"]
ROLE_LABELS: dict[Role, str] = {
    "teacher": "teacher",
    "student": "student (distilled)",
    "control_same_steps": "control, equal steps",
    "control_same_time": "control, equal time",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over held-out sequences."""

    mean: float
    ci95: float
    """Half width of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One logged optimizer step."""

    step: int
    seconds: float
    """Since the start of the first step."""
    loss: float
    ce: float | None = None
    kd: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One trained model: its size, what its training took, and how good it is."""

    role: Role
    num_parameters: int
    num_layers: int
    hidden_size: int
    num_steps: int
    train_s: float
    """Wall time of the training loop, without the start of processes and of the server."""
    tokens_per_s: float
    """Trained tokens of all ranks a second."""
    teacher_wait_s: float
    """Part of train_s in which the trainer waited for targets, mean over ranks; 0 without."""
    peak_memory_mib_per_rank: Sequence[float]
    nelbo: Estimate
    """Nats per token, held out."""
    kl_to_teacher: KlToTeacher | None
    """None for the teacher itself."""
    curve: Sequence[CurvePoint]

    @property
    def label(self) -> str:
        return ROLE_LABELS[self.role]

    @property
    def teacher_wait_fraction(self) -> float:
        return self.teacher_wait_s / self.train_s


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """NELBO of the student minus that of another model, paired over sequences and masks."""

    other: Role
    difference: PairedDifference


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    encoding: str
    bytes_per_position: float
    """Measured on the wire: message bytes over masked positions."""
    used: bool
    """Whether the student was trained with it."""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The teacher server while the student was distilled."""

    peak_memory_mib: float
    batch_fill_fraction: float
    """Share of forwarded tokens that were not padding."""
    tokens_per_s: float
    encodings: Sequence[EncodingCost]


@dataclass(frozen=True, kw_only=True)
class EnvironmentFacts:
    python_version: str
    torch_version: str
    platform: str
    num_cores: int
    num_ranks: int
    num_train_files: int
    num_held_out_files: int
    num_train_bytes: int
    num_held_out_bytes: int
    num_train_tokens: int
    vocab_size: int
    max_seq_len: int
    data_seed: int
    model_seed: int
    evaluation_seed: int
    num_held_out_sequences: int
    masks_per_sequence: int


@dataclass(frozen=True, kw_only=True)
class DistillationFacts:
    alpha: float
    temperature: float
    divergence: str
    weighting: str


@dataclass(frozen=True, kw_only=True)
class InfillAnswer:
    role: Role
    middle: str
    token_accuracy: float
    parses: bool


@dataclass(frozen=True, kw_only=True)
class InfillExample:
    """One held-out function; every answer was sampled with the same seed and sampler."""

    path: str
    name: str
    prefix: str
    original: str
    suffix: str
    num_masked: int
    answers: Sequence[InfillAnswer]


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    quick: bool
    """Tiny sizes: shows that everything runs, and is no evidence for or against."""
    created: str
    """ISO 8601, UTC."""
    total_s: float
    models: Sequence[ModelResult]
    """One of each role, in the order of the roles."""
    comparisons: Sequence[Comparison]
    """The student against each of the other three."""
    server: ServerFacts
    distillation: DistillationFacts
    environment: EnvironmentFacts
    infills: Sequence[InfillExample]

    def __post_init__(self) -> None:
        roles = list(ROLE_LABELS)
        if [model.role for model in self.models] != roles:
            raise ValueError(f"models must be one of each of {roles}, in this order")
        others = {comparison.other for comparison in self.comparisons}
        if others != set(roles) - {"student"}:
            raise ValueError(f"comparisons must be with teacher and controls, got {others}")

    def model(self, role: Role) -> ModelResult:
        return next(model for model in self.models if model.role == role)

    def comparison(self, other: Role) -> PairedDifference:
        return next(found.difference for found in self.comparisons if found.other == other)
