"""What a step measured: to a JSONL file, and to the terminal with the time that is left."""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from student_trainer.trackers import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimizer step over all ranks. Losses in nats, weighted and normalised as configured."""

    step: int
    """From 1: steps done."""
    loss: float
    ce: float
    kd: float
    """With the temperature squared in it; 0 without a teacher."""
    grad_norm: float
    """Before clipping."""
    lr: float
    num_masked: int
    """Positions with a loss."""
    num_tokens: int
    """Tokens of all states, padding left out."""
    step_s: float
    """Wall time of the step, waiting included."""
    teacher_wait_s: float
    """Time the step waited for its states and targets, mean over ranks."""
    num_target_bytes: int
    """Bytes of targets that arrived since the start, those of later steps included."""
    num_retries: int
    """Calls to the teacher that were made again since the start."""
    peak_rss_mib: float
    """Peak resident memory of a trainer process so far, the largest over ranks."""
    elapsed_s: float
    """Since training started."""
    loss_by_time: Mapping[str, float] = field(default_factory=dict)
    """Mean CE and KD of a position, not weighted, by quarters of t: ce_t0.25, kd_t0.25, ..."""

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.step_s if self.step_s else 0.0

    def record(self) -> dict[str, float]:
        """All numbers by name, on one level."""
        numbers = dataclasses.asdict(self)
        by_time = numbers.pop("loss_by_time")
        return numbers | {"tokens_per_s": self.tokens_per_s} | by_time

    def line(self) -> str:
        """Key=value text for the terminal."""
        return (
            f"loss={self.loss:.4f} ce={self.ce:.4f} kd={self.kd:.4f} "
            f"tokens/s={self.tokens_per_s:.0f} teacher_wait_s={self.teacher_wait_s:.3f}"
        )


class MetricsLog:
    """Writes every step to `metrics.jsonl` and shows progress. Used by the main rank alone.

    A run that goes on from a checkpoint keeps the lines of the steps before it, and no others.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_steps: int,
        first_step: int,
        log_every_n_steps: int,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._trackers = trackers
        self._path = path
        self._file: TextIO | None = None
        self._num_steps = num_steps
        self._first_step = first_step
        self._every = log_every_n_steps
        self._started_s = time.monotonic()
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("train"),
                BarColumn(bar_width=10),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                # Where the terminal is narrow, these wrap and the count stays whole.
                TextColumn("{task.fields[line]}", table_column=Column(no_wrap=False)),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(
                "train", total=num_steps, completed=first_step, line=""
            )

    def __enter__(self) -> "MetricsLog":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def add(self, metrics: StepMetrics) -> None:
        """Records one step."""
        if self._file is None:
            # Not before there is a step to write: a start that fails leaves the file as it is.
            self._file = _reopen(self._path, kept_steps=self._first_step)
        record = metrics.record()
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.add(metrics.step, record)
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.step, line=metrics.line())
        elif metrics.step % self._every == 0 or metrics.step == self._num_steps:
            logger.info(
                "step %d/%d eta_s=%.0f %s",
                metrics.step,
                self._num_steps,
                self._eta_s(metrics.step),
                metrics.line(),
            )

    def _eta_s(self, step: int) -> float:
        done = step - self._first_step
        return (time.monotonic() - self._started_s) / done * (self._num_steps - step)


def _reopen(path: Path, *, kept_steps: int) -> TextIO:
    """Opens the file behind the lines of the steps up to `kept_steps`, and drops the others.

    A run that broke went further than its checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if kept_steps and path.exists():
        with path.open(encoding="utf-8") as file:
            # Without its end, a line is what a process that was killed had written so far.
            lines = [line for line in file if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= kept_steps]
    # Renamed into place, so that no moment has fewer lines than were kept.
    scratch = path.with_name(f".{path.name}.partial")
    file = scratch.open("w", encoding="utf-8")
    file.writelines(kept)
    file.flush()
    scratch.rename(path)
    return file


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All steps of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
