"""What an evaluation's report says: plain values, written as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass

from student_trainer.evaluation.evaluation import Section

SCHEMA_VERSION = 1
"""Raised when a key of evaluation.json goes or changes its meaning; new keys do not raise it."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which weights were measured, and how they were called."""

    name: str
    is_teacher: bool
    source: str
    hub_revision: str | None
    """As it was asked for."""
    revision: str
    """Digest of weights and calling, as a teacher-server tells it."""
    family: str
    num_parameters: int
    tokenizer_fingerprint: str
    mask_token_id: int
    alignment: str
    attention: str
    block_length: int | None
    noise: str
    dtype: str
    adapters: list[str]
    quantization: str | None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An evaluation that was not asked for by name and does not apply to a model."""

    evaluation: str
    model: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Everything."""

    created: str
    """UTC, ISO 8601."""
    config: Mapping[str, object]
    software: Mapping[str, object]
    models: list[ModelFacts]
    sections: Mapping[str, Section]
    """By the evaluations' names."""
    skipped: list[Skipped]
    total_s: float
