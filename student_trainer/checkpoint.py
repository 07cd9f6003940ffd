"""Checkpoints of a run in torch's distributed format: what they hold, and how one is read.

There is no state of a scheduler, of random generators or of the targets, and of the data only where
they are a stream: the learning rate, every draw and every batch of data of known size are functions
of the step and of the run's facts.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from student_trainer.ema import WeightAverage
from student_trainer.run_facts import Facts, differences

FACTS_FILE = "run_facts.json"
CONFIG_FILE = "config.yaml"
LATEST = "auto"
REPLACED = ".replaced"
"""Ends the name, .step-N.replaced, of a checkpoint whose successor is not in its place yet."""
_MODEL_KEY, _OPTIMIZER_KEY, _AVERAGE_KEY, _STEP_KEY = "model", "optimizer", "ema", "step"
_DATA_KEY = "data_position"


class DataPosition(Protocol):
    """Where a stream of data is; the same on all ranks."""

    def position(self, step: int) -> Tensor:
        """Where the data of a step begin; what step 0 has can be read into."""
        ...

    def go_to(self, position: Tensor) -> None:
        """Goes on there."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """Everything of a run that a step changes."""

    module: nn.Module
    optimizers: Sequence[Optimizer]
    average: WeightAverage | None = None
    data: DataPosition | None = None
    """None where the step alone tells which data come next."""

    def to_dict(self, step: int) -> dict[str, Any]:
        """The state after `step` steps, sharded as the module is."""
        model, optimizer = get_state_dict(self.module, self.optimizers)
        state = {_MODEL_KEY: model, _OPTIMIZER_KEY: optimizer, _STEP_KEY: step}
        if self.average is not None:
            state[_AVERAGE_KEY] = self.average.averages
        if self.data is not None:
            state[_DATA_KEY] = self.data.position(step)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes a state that was read; the average was read in place."""
        set_state_dict(
            self.module,
            self.optimizers,
            model_state_dict=state[_MODEL_KEY],
            optim_state_dict=state[_OPTIMIZER_KEY],
        )
        if self.data is not None:
            self.data.go_to(state[_DATA_KEY])


def find_checkpoint(path: str, folder: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where `auto` finds nothing in the folder."""
    if path != LATEST:
        return Path(path)
    found = whole_checkpoints(folder)
    return found[-1] if found else None


def put_back_replaced(folder: Path) -> None:
    """Gives checkpoints back their names where a process ended while it replaced them."""
    for replaced in folder.glob(f".step-*{REPLACED}"):
        path = replaced.with_name(replaced.name[1 : -len(REPLACED)])
        if not path.exists():
            replaced.rename(path)


def whole_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints below a folder, by the time they were written."""
    found = [path.parent for path in folder.glob(f"step-*/{FACTS_FILE}")]
    return sorted(found, key=lambda path: ((path / FACTS_FILE).stat().st_mtime_ns, path.name))


def load_checkpoint(folder: Path, training: TrainingState, *, facts: Facts) -> int:
    """Restores a checkpoint, on any number of ranks; returns the number of steps done.

    Raises:
        ValueError: there is no checkpoint, or it is of another model, data, batch or teacher.
    """
    if not (folder / ".metadata").is_file():
        raise ValueError(
            f"train.load_checkpoint_path {str(folder)!r} holds no checkpoint (no .metadata); "
            "name a folder such as output_dir/checkpoints/step-100"
        )
    saved_facts = _read_facts(folder)
    changed = differences(saved_facts, facts)
    if changed:
        raise _misfit(
            folder,
            f"{'; '.join(changed)}. It would be another run: set what it had, or start anew from "
            "its exported weights (model.model_path)",
        )
    state = training.to_dict(0)
    # torch reads what is asked for and does not mind what else is there, such as more layers.
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    known = {f"{_MODEL_KEY}.{name}" for name in state[_MODEL_KEY]}
    unknown = sorted({name for name in saved if name.startswith(f"{_MODEL_KEY}.")} - known)
    if unknown:
        raise _misfit(folder, f"it also holds {unknown[0]}")
    try:
        with one_process_allowed():
            dcp.load(state, checkpoint_id=folder)
    except dcp.CheckpointException as error:
        reason, _ = next(iter(error.failures.values()))
        raise _misfit(folder, str(reason)) from error
    training.restore(state)
    return int(state[_STEP_KEY])


def _read_facts(folder: Path) -> Facts:
    try:
        facts: Facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"train.load_checkpoint_path {str(folder)!r} cannot be read: {FACTS_FILE}: {error}; "
            "remove that folder, or name another one"
        ) from error
    return facts


@contextlib.contextmanager
def one_process_allowed() -> Iterator[None]:
    """Without a process group there is one process, which torch need not warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
        yield


def _misfit(folder: Path, reason: str) -> ValueError:
    return ValueError(f"train.load_checkpoint_path {str(folder)!r} does not fit this run: {reason}")
