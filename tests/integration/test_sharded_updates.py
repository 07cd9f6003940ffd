"""Optimizers, moving averages and adapters on shards: as on one rank, down to what is exported."""

from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from student_trainer.metrics import read_metrics
from tests import train_on_ranks, training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EMA = {"train.ema_decay": 0.5, "train.export_weights": "ema"}
# Name: settings, the error of the loss, the error of a weight. Float32 sums in another order move
# a weight by 1e-6 in four steps. Muon makes a gradient orthogonal in bfloat16, whose spacing is
# 2**-8: a rounding that falls otherwise moves a weight by that share of a step of 1e-2.
CASES: dict[str, tuple[dict[str, object], float, float]] = {
    "adamw": ({"train.save_steps": 4}, 1e-6, 5e-6),
    "adamw_ema": (EMA, 1e-6, 5e-6),
    "lora_ema": ({"train.lora_rank": 2, **EMA}, 1e-6, 5e-6),
    "muon_ema": ({"train.optimizer": "muon", "train.lr": 1e-2, **EMA}, 1e-3, 5e-3),
    "lora_muon": ({"train.lora_rank": 2, "train.optimizer": "muon"}, 2e-3, 2e-3),
}


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load_denoiser(str(folder / "hf_ckpt")).state_dict()


def test_shards_move_and_are_exported_as_whole_weights_are(tiny_checkpoint, tmp_path):
    data = training.write_texts(tmp_path)

    def command(folder: Path, num_ranks: int, settings: dict[str, object]) -> list[str]:
        common = {
            "distill.distillation_alpha": 0,
            "distill.teacher_model_path": tiny_checkpoint,
            "train.global_batch_size": 8,
            "train.micro_batch_size": 8 // num_ranks,
            "train.use_tensorboard": False,
        }
        return training.arguments(folder, data, common | settings)

    fsdp = {"train.data_parallel_mode": "fsdp"}
    train_on_ranks.train_all(
        [command(tmp_path / name, 2, CASES[name][0] | fsdp) for name in CASES],
        num_ranks=2,
        folder=tmp_path,
    )
    for name, (settings, loss_error, weight_error) in CASES.items():
        alone = training.run(command(tmp_path / f"{name}_alone", 1, settings))
        sharded = read_metrics(tmp_path / name / "metrics.jsonl")
        for key in ("loss", "grad_norm"):
            assert [step[key] for step in sharded] == pytest.approx(
                [step[key] for step in alone], rel=loss_error
            ), name
        weights, expected = exported(tmp_path / name), exported(tmp_path / f"{name}_alone")
        assert weights.keys() == expected.keys()
        error = max(float((weights[key] - expected[key]).abs().max()) for key in expected)
        assert error < weight_error, name

    # From the same checkpoint, shards and one rank export the same, to the bit: the one step that
    # is taken to get there is too small to move anything.
    still = {
        "train.load_checkpoint_path": tmp_path / "adamw" / "checkpoints" / "step-4",
        "train.max_steps": 5,
        "train.lr": 1e-30,
    }
    training.run(command(tmp_path / "still", 1, still))
    weights, expected = exported(tmp_path / "adamw"), exported(tmp_path / "still")
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
