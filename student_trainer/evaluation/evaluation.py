"""What every evaluation is: it says whom it fits, measures one model at a time, and concludes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure

from masked_diffusion.families import Denoiser
from student_trainer.evaluation.subjects import Setting, Subject
from student_trainer.report_text import Table


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with the words that go with it."""

    name: str
    """Of its file, without extension."""
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text to look at."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """What came of an evaluation, for JSON, terminal and page."""

    title: str
    values: Mapping[str, object]
    """What JSON can say: the full result, with its settings."""
    tables: Sequence[Table]
    drawings: Sequence[Drawing] = ()
    reading: Sequence[str] = ()
    """How to read the numbers, and what they do not say."""
    examples: Sequence[Example] = ()
    files: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    """More files of JSON lines: name -> rows."""


class Evaluation(ABC):
    """Collects results of one kind over the models of a setting."""

    title: ClassVar[str]
    needs: ClassVar[str] = "data_path"
    """The setting without which there is nothing to measure."""
    measures_teacher: ClassVar[bool] = True
    """False where the teacher is only compared with."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def refusal(self, subject: Subject) -> str | None:
        """Says why it does not apply to a model; None where it does. Looks at no weight."""

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Reads and checks what measuring needs, so that nothing wrong is found out late.

        Args:
            subjects: Those that were not refused; at least one.

        Raises:
            ValueError: data or a setting that cannot be had.
        """
        for subject in subjects:
            self.setting.held_out(subject)

    def load_judges(self) -> None:  # noqa: B027  most evaluations have none
        """Loads other models that measuring needs; all evaluations are prepared by then.

        Raises:
            ValueError: a model that cannot be had.
        """

    @abstractmethod
    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        """Measures one model and keeps the result.

        Args:
            subject: Not refused.
            denoiser: Its weights, in evaluation mode; freed afterwards.
            teacher: The teacher, where there is one.
        """

    @abstractmethod
    def conclude(self) -> Section:
        """Compares the models; called once, after all were measured."""
