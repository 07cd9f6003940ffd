"""Whole training runs on several ranks, in a module of its own that the ranks import."""

from collections.abc import Sequence
from pathlib import Path

from student_trainer import config_file, train
from student_trainer.parallel import start_parallel
from tests import ranks


def train_all(commands: Sequence[Sequence[str]], *, num_ranks: int, folder: Path) -> None:
    """Trains as each command line says, one after another in one group of ranks."""
    ranks.run(_train_all, commands, num_ranks=num_ranks, folder=folder)


def _train_all(commands: Sequence[Sequence[str]]) -> None:
    with start_parallel() as parallel:
        for command in commands:
            train.run(config_file.load_config(command), parallel)
