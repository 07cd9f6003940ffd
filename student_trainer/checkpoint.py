"""Checkpoints of a run in torch's distributed format: model, optimizer, step."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from student_trainer.parallel import Parallel

_MODEL_KEY, _STEP_KEY = "model", "step"
_FACTS_FILE = "run_facts.json"


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: Optimizer,
    *,
    step: int,
    parallel: Parallel,
    facts: Mapping[str, int | str],
) -> None:
    """Writes a checkpoint under a temporary name and renames it, so it is whole or not there.

    The order of the data and the masks are functions of the step and of `facts`, so these are all
    there is to keep of them.

    Args:
        facts: what a run that goes on from here must share; compared by `load_checkpoint`.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    if parallel.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
    _barrier()
    model_state, optimizer_state = get_state_dict(module, optimizer)
    state = {_MODEL_KEY: model_state, "optimizer": optimizer_state, _STEP_KEY: step}
    with _one_process_allowed():
        dcp.save(state, checkpoint_id=scratch)
    _barrier()
    if parallel.is_main:
        (scratch / _FACTS_FILE).write_text(json.dumps(dict(facts), indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    _barrier()


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: Optimizer, *, facts: Mapping[str, int | str]
) -> int:
    """Restores model and optimizer; returns the number of steps done.

    Raises:
        ValueError: there is no checkpoint, or it is of another model, data, batch or teacher.
    """
    if not (folder / ".metadata").is_file():
        raise ValueError(
            f"train.load_checkpoint_path {str(folder)!r} holds no checkpoint (no .metadata); "
            "name a folder such as output_dir/checkpoints/step-100"
        )
    saved_facts = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
    for name in saved_facts.keys() & facts.keys():
        if saved_facts[name] != facts[name]:
            raise _misfit(
                folder,
                f"{name} was {saved_facts[name]} and is {facts[name]} now, so the run would not go "
                "on with the same batches and targets",
            )
    model_state, optimizer_state = get_state_dict(module, optimizer)
    # torch reads what is asked for and does not mind what else is there, such as more layers.
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    known = {f"{_MODEL_KEY}.{name}" for name in model_state}
    unknown = sorted({name for name in saved if name.startswith(f"{_MODEL_KEY}.")} - known)
    if unknown:
        raise _misfit(folder, f"it also holds {unknown[0]}")
    state: dict[str, Any] = {_MODEL_KEY: model_state, "optimizer": optimizer_state, _STEP_KEY: 0}
    try:
        with _one_process_allowed():
            dcp.load(state, checkpoint_id=folder)
    except dcp.CheckpointException as error:
        reason, _ = next(iter(error.failures.values()))
        raise _misfit(folder, str(reason)) from error
    set_state_dict(
        module, optimizer, model_state_dict=state[_MODEL_KEY], optim_state_dict=state["optimizer"]
    )
    return int(state[_STEP_KEY])


def _misfit(folder: Path, reason: str) -> ValueError:
    return ValueError(f"train.load_checkpoint_path {str(folder)!r} does not fit this run: {reason}")


@contextlib.contextmanager
def _one_process_allowed() -> Iterator[None]:
    """Without a process group there is one process, which torch need not warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
        yield


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
