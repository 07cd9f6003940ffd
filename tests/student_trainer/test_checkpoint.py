"""Checkpoints: whole or not there, and a run goes on from one as if it had never stopped."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from masked_diffusion import checkpoints
from student_trainer.checkpoint import (
    TrainingState,
    find_checkpoint,
    load_checkpoint,
    put_back_replaced,
)
from student_trainer.checkpoint_writer import CheckpointWriter
from student_trainer.config import TrainConfig
from student_trainer.ema import WeightAverage
from student_trainer.losses import LossConfig
from student_trainer.objective import DistillationObjective
from student_trainer.optimizer import new_optimizers
from student_trainer.parallel import start_parallel
from tests import tiny_models
from tests.training import ONE_RANK

CONFIG = TrainConfig(output_dir="unused", lr=1e-2)


class Run:
    """A student and its optimizer, trained on something deterministic."""

    def __init__(self, tokenizer, *, seed: int, **sizes) -> None:
        config = tiny_models.qwen2_config(vocab_size=len(tokenizer), **sizes)
        denoiser = checkpoints.new_denoiser(config, tokenizer, seed=seed)
        self.average: WeightAverage
        self.module = DistillationObjective(denoiser, LossConfig(alpha=0.0))
        (self.optimizer,) = new_optimizers(self.module, CONFIG)
        self.state = TrainingState(module=self.module, optimizers=[self.optimizer])

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


def save_checkpoint(folder, run, *, step, facts=None, parallel=ONE_RANK, **options) -> None:
    """Writes `folder/step-N` and waits for it."""
    with CheckpointWriter(folder, parallel, facts=facts or {}, **options) as writer:
        writer.save(run.state.to_dict(step), step=step)


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_a_run_goes_on_bit_for_bit(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(3))
    folder = tmp_path / "checkpoints"
    before = weights(run.module)
    save_checkpoint(folder, run, step=3)
    assert all(map(torch.equal, weights(run.module), before))
    curve = run.train(range(3, 6))

    resumed = Run(tiny_tokenizer, seed=1)
    resumed.optimizer.param_groups[0]["lr"] = 123.0
    assert load_checkpoint(folder / "step-3", resumed.state, facts={}) == 3
    assert resumed.optimizer.param_groups[0]["lr"] == CONFIG.lr
    assert resumed.train(range(3, 6)) == curve
    assert all(map(torch.equal, weights(resumed.module), weights(run.module)))


def test_a_checkpoint_is_whole_and_replaces_an_older_one(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    half = tmp_path / ".step-1.partial"
    half.mkdir()
    (half / "rubbish").touch()
    for _ in range(2):
        run.train(range(1))
        save_checkpoint(tmp_path, run, step=1)
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
        assert not (tmp_path / "step-1" / "rubbish").exists()
    other = Run(tiny_tokenizer, seed=1)
    assert load_checkpoint(tmp_path / "step-1", other.state, facts={}) == 1
    assert all(map(torch.equal, weights(other.module), weights(run.module)))


def test_training_goes_on_while_a_checkpoint_is_written(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    saved = weights(run.module)
    with CheckpointWriter(tmp_path, ONE_RANK, facts={}) as writer:
        writer.save(run.state.to_dict(1), step=1)
        # The next steps change the weights, not the copy that is on its way to the disk.
        run.train(range(1, 4))
    other = Run(tiny_tokenizer, seed=1)
    load_checkpoint(tmp_path / "step-1", other.state, facts={})
    assert all(map(torch.equal, weights(other.module), saved))


def test_the_newest_checkpoints_are_kept_and_the_last_one_is_found(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    assert find_checkpoint("auto", tmp_path) is None
    with CheckpointWriter(tmp_path, ONE_RANK, facts={}, keep_last=2) as writer:
        for step in (2, 9, 10):
            writer.save(run.state.to_dict(step), step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step-10"
    # Newest is what was written last: a run that began anew counts from the start again.
    save_checkpoint(tmp_path, run, step=1)
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step-1"
    assert find_checkpoint(str(tmp_path / "step-9"), tmp_path) == tmp_path / "step-9"


def test_a_checkpoint_that_cannot_be_written_fails_the_run(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*Not a directory"):
        save_checkpoint(tmp_path / "file", run, step=1)


def test_a_failed_write_is_told_before_the_next_one(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    (tmp_path / "file").touch()
    writer = CheckpointWriter(tmp_path / "file", ONE_RANK, facts={})
    writer.save(run.state.to_dict(1), step=1)
    with pytest.raises(OSError, match=r"cannot write the checkpoint"):
        while True:
            writer.check()
    writer.check()
    writer.__exit__(None, None, None)


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(
    tiny_tokenizer, tmp_path, monkeypatch
):
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", fsync)
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    save_checkpoint(tmp_path, run, step=1, config_text="data: {}")
    scratch = tmp_path / ".step-1.partial"
    # torch syncs what it writes under names that it changes then.
    ours = [path for path in synced if path.suffix not in (".distcp", ".tmp", ".metadata")]
    assert ours == [scratch / "config.yaml", scratch / "run_facts.json", scratch, tmp_path]
    assert {path.suffix for path in synced[: -len(ours)]} == {".distcp", ".tmp"}


def test_a_checkpoint_that_was_being_replaced_when_the_process_ended_is_put_back(
    tiny_tokenizer, tmp_path
):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    save_checkpoint(tmp_path, run, step=1)
    for begin in (
        put_back_replaced,
        lambda folder: CheckpointWriter(folder, ONE_RANK, facts={}),
    ):
        (tmp_path / "step-1").rename(tmp_path / ".step-1.replaced")
        begin(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    # Where the new one has its name, the old one goes.
    (tmp_path / ".step-1.replaced").mkdir()
    save_checkpoint(tmp_path, run, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
    assert load_checkpoint(tmp_path / "step-1", run.state, facts={}) == 1


@pytest.mark.parametrize("text", ["", '{"steps_done": '])
def test_a_checkpoint_that_cannot_be_read_is_named(tiny_tokenizer, tmp_path, text):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    save_checkpoint(tmp_path, run, step=1)
    (tmp_path / "step-1" / "run_facts.json").write_text(text)
    with pytest.raises(ValueError, match=r"load_checkpoint_path '.*step-1' cannot be read: run_fa"):
        load_checkpoint(tmp_path / "step-1", run.state, facts={})


def test_the_moving_average_is_part_of_it(tiny_tokenizer, tmp_path):
    runs = [Run(tiny_tokenizer, seed=seed) for seed in (0, 1)]
    for run in runs:
        run.average = WeightAverage(run.module, decay=0.5)
        run.state = TrainingState(
            module=run.module, optimizers=[run.optimizer], average=run.average
        )
    runs[0].train(range(2))
    runs[0].average.update()
    save_checkpoint(tmp_path, runs[0], step=2)
    load_checkpoint(tmp_path / "step-2", runs[1].state, facts={})
    for name, average in runs[0].average.averages.items():
        assert torch.equal(runs[1].average.averages[name], average)


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
        save_checkpoint(tmp_path, run, step=1, parallel=parallel)
        other = Run(tiny_tokenizer, seed=1)
        assert load_checkpoint(tmp_path / "step-1", other.state, facts={}) == 1
    assert all(map(torch.equal, weights(other.module), weights(run.module)))


def test_a_folder_without_a_checkpoint_is_refused(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"train.load_checkpoint_path .* holds no checkpoint"):
            load_checkpoint(folder, run.state, facts={})


@pytest.mark.parametrize("sizes", [{"hidden_size": 16}, {"num_layers": 3}, {"num_layers": 1}])
def test_a_checkpoint_of_another_student_is_refused(tiny_tokenizer, tmp_path, sizes):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    save_checkpoint(tmp_path, run, step=1)
    other = Run(tiny_tokenizer, seed=0, **sizes)
    with pytest.raises(ValueError, match="does not fit this run") as caught:
        load_checkpoint(tmp_path / "step-1", other.state, facts={})
    assert "\n" not in str(caught.value)


def test_a_run_with_other_data_or_another_teacher_does_not_go_on_from_it(tiny_tokenizer, tmp_path):
    run = Run(tiny_tokenizer, seed=0)
    run.train(range(1))
    facts: dict[str, int | str] = {"global_batch_size": 8, "teacher_revision": "a1"}
    save_checkpoint(tmp_path, run, step=1, facts=facts)
    for other in (facts | {"global_batch_size": 16}, facts | {"teacher_revision": "b2"}):
        (name,) = [name for name in facts if facts[name] != other[name]]
        with pytest.raises(ValueError, match=f"{name} was {facts[name]} and is {other[name]} now"):
            load_checkpoint(tmp_path / "step-1", run.state, facts=other)
    assert load_checkpoint(tmp_path / "step-1", run.state, facts=facts) == 1
