"""Checkpoints: whole or not there, and a run goes on from one as if it had never stopped."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from masked_diffusion import checkpoints
from student_trainer.checkpoint import load_checkpoint, save_checkpoint
from student_trainer.config import TrainConfig
from student_trainer.losses import LossConfig
from student_trainer.objective import DistillationObjective
from student_trainer.optimizer import new_optimizer
from student_trainer.parallel import start_parallel
from tests import tiny_models
from tests.training import ONE_RANK

CONFIG = TrainConfig(output_dir="unused", lr=1e-2)


class Run:
    """A student and its optimizer, trained on something deterministic."""

    def __init__(self, tokenizer, *, seed: int, **sizes) -> None:
        config = tiny_models.qwen2_config(vocab_size=len(tokenizer), **sizes)
        denoiser = checkpoints.new_denoiser(config, tokenizer, seed=seed)
        self.module = DistillationObjective(denoiser, LossConfig(alpha=0.0))
        self.optimizer = new_optimizer(self.module, CONFIG)

    def train(self, steps: range) -> list[float]:
        curve = []
        for step in steps:
            ids_BL = (torch.arange(24).reshape(2, 12) * (step + 3)) % 290
            loss = self.module.denoiser(ids_BL).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            curve.append(float(loss.detach()))
        return curve


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_a_run_goes_on_bit_for_bit(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(3))
    folder = tmp_path / "checkpoints" / "step-3"
    before = weights(run.module)
    save_checkpoint(folder, run.module, run.optimizer, step=3, parallel=ONE_RANK, facts={})
    assert all(map(torch.equal, weights(run.module), before))
    curve = run.train(range(3, 6))

    resumed = Run(tiny_tokenizer, seed=1)
    resumed.optimizer.param_groups[0]["lr"] = 123.0
    assert load_checkpoint(folder, resumed.module, resumed.optimizer, facts={}) == 3
    assert resumed.optimizer.param_groups[0]["lr"] == CONFIG.lr
    assert resumed.train(range(3, 6)) == curve
    assert all(map(torch.equal, weights(resumed.module), weights(run.module)))


def test_a_checkpoint_is_whole_and_replaces_an_older_one(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    folder = tmp_path / "step-1"
    half = tmp_path / ".step-1.partial"
    half.mkdir()
    (half / "rubbish").touch()
    for step in (1, 2):
        run.train(range(1))
        save_checkpoint(folder, run.module, run.optimizer, step=step, parallel=ONE_RANK, facts={})
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
        assert not (folder / "rubbish").exists()
    assert load_checkpoint(folder, run.module, run.optimizer, facts={}) == 2


def test_ranks_save_and_load_together(tiny_tokenizer, tmp_path, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    with start_parallel() as parallel:
        assert dist.is_initialized()
        save_checkpoint(
            tmp_path / "c", run.module, run.optimizer, step=1, parallel=parallel, facts={}
        )
        other = Run(tiny_tokenizer, seed=1)
        assert load_checkpoint(tmp_path / "c", other.module, other.optimizer, facts={}) == 1
    assert all(map(torch.equal, weights(other.module), weights(run.module)))


def test_a_folder_without_a_checkpoint_is_refused(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"train.load_checkpoint_path .* holds no checkpoint"):
            load_checkpoint(folder, run.module, run.optimizer, facts={})


@pytest.mark.parametrize("sizes", [{"hidden_size": 16}, {"num_layers": 3}, {"num_layers": 1}])
def test_a_checkpoint_of_another_student_is_refused(tiny_tokenizer, tmp_path, sizes):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    save_checkpoint(tmp_path / "c", run.module, run.optimizer, step=1, parallel=ONE_RANK, facts={})
    other = Run(tiny_tokenizer, seed=0, **sizes)
    with pytest.raises(ValueError, match="does not fit this run") as caught:
        load_checkpoint(tmp_path / "c", other.module, other.optimizer, facts={})
    assert "\n" not in str(caught.value)


def test_a_run_with_other_data_or_another_teacher_does_not_go_on_from_it(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    facts: dict[str, int | str] = {"global_batch_size": 8, "teacher_revision": "a1"}
    save_checkpoint(
        tmp_path / "c", run.module, run.optimizer, step=1, parallel=ONE_RANK, facts=facts
    )
    for other in (facts | {"global_batch_size": 16}, facts | {"teacher_revision": "b2"}):
        (name,) = [name for name in facts if facts[name] != other[name]]
        with pytest.raises(ValueError, match=f"{name} was {facts[name]} and is {other[name]} now"):
            load_checkpoint(tmp_path / "c", run.module, run.optimizer, facts=other)
    assert load_checkpoint(tmp_path / "c", run.module, run.optimizer, facts=facts) == 1
