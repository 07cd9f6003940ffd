"""A sharded run is killed and goes on: on as many ranks, on others, and in every other mode."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from student_trainer.metrics import read_metrics
from tests import interrupted_runs, train_on_ranks, training
from tests.ranks import Ranks
from tests.servers import RunningServer, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STEPS = 16
KILL_AFTER_STEP = interrupted_runs.random_step(NUM_STEPS // 2, seed=4)
KILL_AGAIN_AFTER_STEP = NUM_STEPS // 2 + 2
LIMIT_S = 30.0
"""For ranks to end once one of them is gone: most of it is for a busy machine."""
HSDP = {"train.data_parallel_mode": "hsdp", "train.data_parallel_replicate_size": 2}
FSDP = {"train.data_parallel_mode": "fsdp"}
DDP = {"train.data_parallel_mode": "ddp"}
NAMES = ("loss", "ce", "kd", "grad_norm")


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    """One row a step: an answer does not depend on who else asks."""
    with serve(tiny_denoiser, deterministic=True) as running:
        yield running


class Runs:
    """Command lines of one run on any number of ranks, with the checkpoints of a killed one."""

    def __init__(self, folder: Path, server: RunningServer, teacher: Path) -> None:
        self._folder = folder
        self._data = training.write_texts(folder)
        self._settings: dict[str, object] = {
            "distill.teacher_address": server.address,
            "distill.teacher_model_path": teacher,
            "model.config_overrides": {"num_hidden_layers": 1},
            "train.global_batch_size": 8,
            "train.max_steps": NUM_STEPS,
            "train.save_steps": 1,
            "train.load_checkpoint_path": "auto",
            "train.enable_full_determinism": True,
            "train.use_tensorboard": False,
        }

    def command(self, name: str, num_ranks: int, settings: dict[str, object]) -> list[str]:
        more = {"train.micro_batch_size": 8 // num_ranks}
        return training.arguments(self._folder / name, self._data, self._settings | more | settings)

    def start(self, name: str, num_ranks: int, settings: dict[str, object]) -> Ranks:
        return interrupted_runs.start(
            self.command(name, num_ranks, settings),
            num_ranks=num_ranks,
            folder=self._folder / f"{name}_logs",
        )

    def copy_of(self, killed: str, name: str) -> str:
        """A folder with what the killed run left, metrics and checkpoints."""
        shutil.copytree(self._folder / killed, self._folder / name)
        return name

    def metrics(self, name: str) -> list[dict[str, float]]:
        return read_metrics(self._folder / name / "metrics.jsonl")

    def metrics_path(self, name: str) -> Path:
        return self._folder / name / "metrics.jsonl"

    def student(self, name: str) -> dict[str, torch.Tensor]:
        return checkpoints.load_denoiser(str(self._folder / name / "hf_ckpt")).state_dict()

    def check_equal(self, name: str, other: str) -> None:
        ignored = (*training.TIMES, *training.ASKING)
        ours, theirs = (training.without(self.metrics(one), *ignored) for one in (name, other))
        assert ours == theirs
        weights = self.student(other)
        for key, tensor in self.student(name).items():
            assert torch.equal(tensor, weights[key]), key

    def check_close(self, name: str, other: str) -> None:
        ours, theirs = self.metrics(name), self.metrics(other)
        assert [step["step"] for step in ours] == [step["step"] for step in theirs]
        for one, two in zip(ours, theirs, strict=True):
            for key in NAMES:
                # Float32 sums in another order, over some updates.
                assert one[key] == pytest.approx(two[key], rel=1e-5), (name, one["step"], key)


@pytest.fixture(scope="module")
def runs(server, tiny_checkpoint, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), server, tiny_checkpoint)


def test_a_sharded_run_that_is_killed_goes_on_in_every_mode_and_on_any_number_of_ranks(
    runs, tmp_path
):
    ranks = runs.start("killed", 2, FSDP)
    codes = interrupted_runs.interrupt(
        ranks, runs.metrics_path("killed"), after_step=KILL_AFTER_STEP, number=signal.SIGKILL
    )
    assert codes == [-signal.SIGKILL] * 2
    assert KILL_AFTER_STEP <= len(runs.metrics("killed")) < NUM_STEPS

    for name in ("again_fsdp", "again_ddp", "again_hsdp"):
        runs.copy_of("killed", name)
    on_two = {"whole": FSDP, "again_fsdp": FSDP, "again_ddp": DDP}
    train_on_ranks.train_all(
        [runs.command(name, 2, mode) for name, mode in on_two.items()],
        num_ranks=2,
        folder=tmp_path,
    )
    runs.check_equal("again_fsdp", "whole")
    runs.check_close("again_ddp", "whole")

    # Twice as many ranks go on, until one of them is killed; then one goes on alone.
    ranks = runs.start("again_hsdp", 4, HSDP)
    interrupted_runs.wait_for_step(
        runs.metrics_path("again_hsdp"), step=KILL_AGAIN_AFTER_STEP, is_running=ranks.is_running
    )
    killed_s = time.monotonic()
    ranks.processes[2].kill()
    assert ranks.wait() == [1, 1, -signal.SIGKILL, 1]
    assert time.monotonic() - killed_s < LIMIT_S
    lines = [line for line in ranks.output().splitlines() if line.startswith("distill train")]
    assert len(lines) == 3
    assert all("stopped, rank 2 is gone" in line for line in lines), lines
    assert "RuntimeError" not in ranks.output()

    training.run(runs.command("again_hsdp", 1, DDP))
    runs.check_close("again_hsdp", "whole")
