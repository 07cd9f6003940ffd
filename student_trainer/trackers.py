"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from student_trainer.config import TrainConfig

Record = Mapping[str, float]

WANDB_ID_FILE = "wandb_run_id"


class Tracker(Protocol):
    """Takes the numbers of every step. Used by the main rank alone."""

    def add(self, step: int, record: Record) -> None:
        """Takes one step's numbers."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class TensorBoard:
    """Event files that `tensorboard --logdir output_dir` shows."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Hides what a run that broke had written after `first_step`.

        Raises:
            ValueError: tensorboard is not installed.
        """
        try:
            # Slow to import, and not everybody's choice.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise ValueError(
                "train.use_tensorboard needs tensorboard; pip install tensorboard, or set false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, step: int, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run, which goes on where training goes on from a checkpoint."""

    def __init__(
        self, config: TrainConfig, settings: Mapping[str, Any], *, first_step: int
    ) -> None:
        """Begins the run, or goes on with that of the same output_dir after `first_step`.

        Args:
            settings: the whole configuration, to look up there.

        Raises:
            ValueError: wandb is not installed.
        """
        try:
            import wandb  # noqa: PLC0415 - optional, and slow to import
        except ImportError as error:
            raise ValueError(
                "train.use_wandb needs wandb; pip install wandb, or set false"
            ) from error
        self._run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_name,
            dir=config.output_dir,
            config=dict(settings),
            id=_run_id(Path(config.output_dir) / WANDB_ID_FILE, is_new=not first_step),
            resume="allow",
        )

    def add(self, step: int, record: Record) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path, *, is_new: bool) -> str:
    """The id that is kept there, or a new one that is kept from now on."""
    if is_new or not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def new_trackers(
    config: TrainConfig, settings: Mapping[str, Any], *, first_step: int
) -> list[Tracker]:
    """Those that the configuration asks for.

    Raises:
        ValueError: a library is missing.
    """
    trackers: list[Tracker] = []
    if config.use_tensorboard:
        folder = Path(config.output_dir) / "tensorboard"
        trackers.append(TensorBoard(folder, first_step=first_step))
    if config.use_wandb:
        trackers.append(WeightsAndBiases(config, settings, first_step=first_step))
    return trackers
