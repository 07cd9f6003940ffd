"""Options of the engine, measured on the loaded teacher or read from where they were noted."""

import argparse
import dataclasses
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from teacher_server.autotune_trials import Arm, choose, step_time, take_turns
from teacher_server.config import AutotuneConfig, EngineConfig
from teacher_server.engine import compiled_body
from teacher_server.options import read_options

logger = logging.getLogger(__name__)

_BUDGETS = (1024, 2048, 4096, 8192, 16_384)
_HEAD_ELEMENTS = (2**20, 2**22, 2**24)
_WEIGHTS = {"max_batch_tokens": 3}
"""Of an option's share of the time, else 1: large batches take long."""
_MIN_COMPILE_SECONDS = 120.0
"""Of the whole time, for compiling to be tried: it takes from seconds to minutes."""
_BASE_BUDGET = 1024
"""For options other than the budget."""


def tuned(
    denoiser: Denoiser, options: argparse.Namespace, *, revision: str | None
) -> tuple[EngineConfig, str | None]:
    """The engine's options, and the revision where it had to be known.

    Sets torch's number of CPU threads too, and tells what was tried.

    Args:
        denoiser: What will be served.
        options: Of the command line; those that were given there are left alone.
        revision: `weights_digest` of the denoiser; None computes it where it is needed.

    Raises:
        ValueError: there is no such file and nothing is to be measured, or it is no such JSON.
    """
    engine_config = read_options(options, EngineConfig)
    config = read_options(options, AutotuneConfig)
    given = frozenset(options.given)
    if not (config.autotune or config.autotune_file):
        return engine_config, revision
    revision = revision or checkpoints.weights_digest(denoiser)
    facts = _facts(denoiser, revision)
    path = Path(config.autotune_file) if config.autotune_file else None
    chosen = None if path is None else _read(path, facts, must_exist=not config.autotune)
    if chosen is None and config.autotune:
        chosen, arms = measure(
            denoiser, engine_config, seconds=config.autotune_seconds, given=given
        )
        logger.info("autotune device=%s\n%s", facts["device"], table(arms, chosen))
        if path is not None:
            _write(path, facts | {"chosen": chosen, "trials": list(map(dataclasses.asdict, arms))})
    kept: dict[str, Any] = {
        name: value for name, value in (chosen or {}).items() if name not in given
    }
    logger.info("autotuned %s", " ".join(f"{name}={value}" for name, value in kept.items()))
    if "num_threads" in kept:
        torch.set_num_threads(int(kept.pop("num_threads")))
    return dataclasses.replace(engine_config, **kept), revision


def measure(
    denoiser: Denoiser, engine_config: EngineConfig, *, seconds: float, given: frozenset[str]
) -> tuple[dict[str, int | bool], list[Arm]]:
    """Finds each option in turn, those before it as found; what is `given` stays as it is.

    Returns:
        The choice, and all that was timed. Leaves torch's number of threads as it was.
    """
    num_threads = torch.get_num_threads()
    candidates = {
        name: values
        for name, values in _candidates(denoiser, engine_config, seconds=seconds).items()
        if name not in given and len(values) > 1
    }
    chosen: dict[str, int | bool] = {}
    all_arms: list[Arm] = []
    budget = engine_config.max_batch_tokens if "max_batch_tokens" in given else _BASE_BUDGET

    def run(arm: Arm) -> tuple[float, int]:
        options = {"max_batch_tokens": budget} | chosen | {arm.option: arm.value}
        torch.set_num_threads(int(options.pop("num_threads", num_threads)))
        return step_time(denoiser, dataclasses.replace(engine_config, **options))  # type: ignore[arg-type]

    weights = {option: _WEIGHTS.get(option, 1) for option in candidates}
    try:
        for option, values in candidates.items():
            arms = [Arm(option=option, value=value) for value in values]
            take_turns(arms, run, seconds=seconds * weights[option] / sum(weights.values()))
            chosen[option] = choose(arms)
            all_arms += arms
    finally:
        torch.set_num_threads(num_threads)
    return chosen, all_arms


def _candidates(
    denoiser: Denoiser, engine_config: EngineConfig, *, seconds: float
) -> Mapping[str, tuple[int | bool, ...]]:
    """Of each option, what is preferred first where speed does not differ."""
    num_cores = len(os.sched_getaffinity(0))
    can_pack = denoiser.info.attention != "block_causal" and denoiser.enable_ragged()
    can_compile = (
        seconds >= _MIN_COMPILE_SECONDS
        and not (engine_config.deterministic or engine_config.compile)
        and compiled_body.obstacle(denoiser) is None
    )
    return {
        "num_threads": tuple(sorted({1, max(1, num_cores // 2), num_cores}))
        if denoiser.device.type == "cpu"
        else (),
        "pad_rows": (False, True) if can_pack and not engine_config.pad_rows else (),
        "compile": (False, True) if can_compile else (),
        "max_batch_tokens": _BUDGETS,
        "max_head_elements": tuple(
            elements for elements in _HEAD_ELEMENTS if elements >= denoiser.info.vocab_size
        ),
    }


def table(arms: list[Arm], chosen: Mapping[str, int | bool]) -> str:
    """What was tried, to read."""
    lines = [f"{'option':<20} {'value':>10} {'us/token':>10} {'times':>6}"]
    for arm in arms:
        figure = f"{arm.median_us:.2f}" if arm.us_per_token else "no time"
        mark = " <- chosen" if chosen[arm.option] == arm.value else ""
        lines.append(
            f"{arm.option:<20} {arm.value!s:>10} {figure:>10} {len(arm.us_per_token):>6}{mark}"
        )
    return "\n".join(lines)


def _facts(denoiser: Denoiser, revision: str) -> dict[str, Any]:
    """What must be the same for a choice to be used again."""
    device = denoiser.device
    num_cores = len(os.sched_getaffinity(0))
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {platform.machine()}, {num_cores} cores"
    )
    return {"revision": revision, "device": name, "torch": torch.__version__}


def _read(
    path: Path, facts: Mapping[str, Any], *, must_exist: bool
) -> dict[str, int | bool] | None:
    """The choice of the file; None where it is not there or belongs to something else."""
    if not path.exists():
        if must_exist:
            raise ValueError(f"autotune_file {path} does not exist; give --autotune to write it")
        return None
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        others = [name for name, value in facts.items() if noted[name] != value]
        chosen: dict[str, int | bool] = {
            name: _NUMBERS[name](v) for name, v in noted["chosen"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"autotune_file {path} is not one that --autotune wrote; delete it"
        ) from error
    for name in others:
        logger.warning(
            "autotune_file %s not used: its %s is %s, here it is %s",
            path,
            name,
            noted[name],
            facts[name],
        )
    return None if others else chosen


_NUMBERS: Mapping[str, Callable[[Any], int | bool]] = {
    "num_threads": int,
    "pad_rows": bool,
    "compile": bool,
    "max_batch_tokens": int,
    "max_head_elements": int,
}


def _write(path: Path, noted: Mapping[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)
