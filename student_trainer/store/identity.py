"""What a store was asked of which teacher: stores that differ in it are never mixed."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from student_trainer.store.errors import StoreError, StoreMismatchError
from student_trainer.wire import SamplerSpec, TargetSpec, TeacherDescription

Scalar = int | float | bool | str | None
_T = TypeVar("_T")

TEACHER_FACTS = (
    "revision",
    "tokenizer_fingerprint",
    "vocab_size",
    "mask_token_id",
    "head_digest",
    "num_invalid_leading_positions",
    "noise",
    "block_length",
)
"""Of a teacher's description, what its targets depend on. Its name and limits may differ."""

PLAN_KIND = "kind"
RUN_PLAN = "run"
DATASET_PLAN = "dataset"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreIdentity:
    """Written when a store is made, and never changed."""

    teacher: TeacherDescription
    targets: TargetSpec
    sampler: SamplerSpec | None
    """None where the states were made by the client and scored."""
    plan: Mapping[str, Scalar] = field(default_factory=dict)
    """Which states were asked for: "kind" and what else decides them; empty where unknown."""

    @property
    def kind(self) -> str:
        """RUN_PLAN, DATASET_PLAN, or "" where nobody said."""
        return str(self.plan.get(PLAN_KIND, ""))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "teacher": asdict(self.teacher),
            "targets": asdict(self.targets),
            "sampler": None if self.sampler is None else asdict(self.sampler),
            "plan": dict(self.plan),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StoreIdentity":
        """Reads `to_json`; fields that this version does not know are left out.

        Raises:
            StoreError: a field is missing that has no default.
        """
        sampler = values.get("sampler")
        return cls(
            teacher=_build(TeacherDescription, values.get("teacher", {})),
            targets=_build(TargetSpec, values.get("targets", {})),
            sampler=None if sampler is None else _build(SamplerSpec, sampler),
            plan=dict(values.get("plan", {})),
        )

    def facts(self) -> dict[str, object]:
        """Everything that must be equal, by name."""
        facts: dict[str, object] = {
            f"teacher.{name}": getattr(self.teacher, name) for name in TEACHER_FACTS
        }
        facts |= {f"targets.{name}": value for name, value in asdict(self.targets).items()}
        facts |= (
            {"sampler": None}
            if self.sampler is None
            else {f"sampler.{name}": value for name, value in asdict(self.sampler).items()}
        )
        return facts | {f"plan.{name}": value for name, value in self.plan.items()}

    def check_same(self, other: "StoreIdentity", *, where: str, whose: str) -> None:
        """Refuses another identity, naming the first fact that differs.

        Args:
            where: the store of this identity.
            whose: what the other one belongs to, such as "this run".

        Raises:
            StoreMismatchError: they differ.
        """
        ours, theirs = self.facts(), other.facts()
        for name in sorted(ours.keys() | theirs.keys(), key=_teacher_first):
            here, there = ours.get(name, "not said"), theirs.get(name, "not said")
            if here != there:
                raise StoreMismatchError(
                    f"the store {where} has {name} = {here!r}, {whose} has {there!r}; targets of "
                    "two kinds are never mixed: use another store, or the settings of this one"
                )


def _teacher_first(name: str) -> tuple[bool, str]:
    return not name.startswith("teacher."), name


def _build(kind: type[_T], values: Mapping[str, Any]) -> _T:
    known = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in values:
            value = values[item.name]
            known[item.name] = tuple(value) if isinstance(value, list) else value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise StoreError(
                f"the index does not say {kind.__name__}.{item.name}; it was written by another "
                "version or by another program"
            )
    return kind(**known)
