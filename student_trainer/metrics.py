"""What a step measured: to a JSONL file, and to the terminal with the time that is left."""

import dataclasses
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

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

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.step_s if self.step_s else 0.0

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
        self, path: Path, *, num_steps: int, first_step: int, log_every_n_steps: int
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_up_to(path, first_step) if first_step and path.exists() else []
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)
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
        self._file.close()

    def add(self, metrics: StepMetrics) -> None:
        """Records one step."""
        record = dataclasses.asdict(metrics) | {"tokens_per_s": metrics.tokens_per_s}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
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


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of the steps up to this one: a run that broke went further than its checkpoint."""
    with path.open(encoding="utf-8") as file:
        # Without its end, a line is what a process that was killed had written so far.
        return [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All steps of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
