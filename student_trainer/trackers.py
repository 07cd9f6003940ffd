"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from student_trainer.config import TrainConfig

Record = Mapping[str, float]


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
    """One W&B run."""

    def __init__(self, config: TrainConfig, settings: Mapping[str, Any]) -> None:
        """Begins the run.

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
        )

    def add(self, step: int, record: Record) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


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
        trackers.append(WeightsAndBiases(config, settings))
    return trackers
