"""Small training runs: their data, their command lines, what they wrote."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from student_trainer import train
from student_trainer.metrics import read_metrics
from student_trainer.parallel import Parallel
from tests import tiny_models

ONE_RANK = Parallel(device=torch.device("cpu"))
TIMES = ("step_s", "teacher_wait_s", "peak_rss_mib", "elapsed_s", "tokens_per_s")
"""Metrics that differ from run to run."""
ASKING = ("num_target_bytes", "num_retries")
"""Metrics that count what was asked so far, requests ahead of the step included."""


def texts(num_documents: int = 24) -> list[str]:
    """Documents of many lengths, no two alike."""
    sources = tiny_models.PYTHON_SOURCES
    return [
        f"x{index} = {index}\n" + "".join(sources[(index + k) % 5] for k in range(1 + index % 3))
        for index in range(num_documents)
    ]


def write_texts(folder: Path, num_documents: int = 24) -> Path:
    """A JSONL file of `texts`, each cut into a prompt and its answer, and whole."""
    path = folder / "train.jsonl"
    rows = [
        {"text": text, "prompt": text[:12], "answer": text[12:]} for text in texts(num_documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(
    output_dir: Path, train_path: Path, settings: Mapping[str, object] | None = None
) -> list[str]:
    """The command line of a short run; further settings by their dotted names."""
    values: dict[str, object] = {
        "data.train_path": train_path,
        "data.max_seq_len": 64,
        "data.min_chunk_tokens": 8,
        "train.output_dir": output_dir,
        "train.micro_batch_size": 4,
        "train.max_steps": 4,
        "train.lr": 3e-3,
        "train.log_every_n_steps": 1,
    }
    values |= settings or {}
    return [
        f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}"
        for name, value in values.items()
    ]


def run(command: Sequence[str]) -> list[dict[str, float]]:
    """Trains in this process; the metrics of every step."""
    assert train.main(list(command)) == 0
    (folder,) = (
        word.partition("=")[2] for word in command if word.startswith("--train.output_dir=")
    )
    return read_metrics(Path(folder) / "metrics.jsonl")


def without(metrics: Sequence[Mapping[str, float]], *names: str) -> list[dict[str, float]]:
    """The metrics of every step but some of them."""
    return [{k: v for k, v in step.items() if k not in names} for step in metrics]
