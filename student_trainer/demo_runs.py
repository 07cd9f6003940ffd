"""The demo's training runs: each a torchrun, reused while what it depends on is the same."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase, Qwen2Config

from student_trainer.demo_plan import DemoPlan, ModelSize
from student_trainer.metrics import read_metrics

_DONE = "done.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One finished training run."""

    folder: Path
    reused: bool

    @property
    def model_path(self) -> Path:
        """The exported model."""
        return self.folder / "hf_ckpt"

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One record a step."""
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def train_s(self) -> float:
        """Wall time of the training loop."""
        return self.metrics[-1]["elapsed_s"]


def write_model_config(
    folder: Path, size: ModelSize, plan: DemoPlan, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes the folder that `model.config_path` names: a configuration and the tokenizer."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=3 * size.hidden_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_attention_heads,
        max_position_embeddings=2 * plan.max_seq_len,
        tie_word_embeddings=True,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(
    folder: Path,
    settings: dict[str, dict[str, object]],
    *,
    num_ranks: int,
    depends_on: Sequence[str],
) -> Run:
    """Trains with `torchrun`, or takes the finished run that is there already.

    Args:
        settings: the sections of the configuration.
        depends_on: digests of what the run reads; with the settings they decide whether the run
            in the folder is still valid. The teacher's address is not part of them.
    """
    digest = _digest(settings, num_ranks, depends_on)
    if _is_done(folder, digest):
        return Run(folder=folder, reused=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config_path = folder / "run.yaml"
    config_path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    started_s = time.monotonic()
    with (folder / "stdout.log").open("wb") as log:
        status = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--standalone", "--nproc-per-node", str(num_ranks)),
                *("-m", "student_trainer.train", str(config_path)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            env=_environment(),
            check=False,
        ).returncode
    if status != 0:
        raise RuntimeError(f"training in {folder} failed with code {status}; see the lines above")
    record = {"digest": digest, "seconds": time.monotonic() - started_s}
    (folder / _DONE).write_text(json.dumps(record), encoding="utf-8")
    return Run(folder=folder, reused=False)


def settings_for(
    plan: DemoPlan,
    *,
    folder: Path,
    config_path: Path,
    train_path: Path,
    num_steps: int,
    lr: float,
    teacher_address: str | None = None,
) -> dict[str, dict[str, object]]:
    """The configuration of one run; with an address it distils, without it trains on data alone."""
    alpha = plan.distillation_alpha if teacher_address else 0.0
    distill: dict[str, object] = {"distillation_alpha": alpha}
    if teacher_address:
        distill |= {"teacher_address": teacher_address, "init_student_from_teacher": False}
    return {
        "model": {"config_path": str(config_path)},
        "data": {
            "train_path": str(train_path),
            "max_seq_len": plan.max_seq_len,
            "min_chunk_tokens": plan.min_chunk_tokens,
            "cache_dir": str(folder.parent / "data_cache"),
        },
        "train": {
            "output_dir": str(folder),
            "micro_batch_size": plan.micro_batch_size,
            "max_steps": num_steps,
            "lr": lr,
            "seed": plan.seed,
            "log_every_n_steps": max(10, num_steps // 15),
        },
        "distill": distill,
    }


def plan_digest(plan: DemoPlan) -> str:
    """Names the plan by its content."""
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()


def _digest(
    settings: dict[str, dict[str, object]], num_ranks: int, depends_on: Sequence[str]
) -> str:
    kept = {
        section: {key: value for key, value in fields.items() if key != "teacher_address"}
        for section, fields in settings.items()
    }
    content = json.dumps([kept, num_ranks, list(depends_on)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _is_done(folder: Path, digest: str) -> bool:
    try:
        record = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("digest") == digest)


def _environment() -> dict[str, str]:
    # One thread a rank: more would fight over the cores that the ranks already fill.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return os.environ | threads | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
