"""Two ranks under torchrun, with gloo, against a server process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from masked_diffusion import checkpoints
from student_trainer.client import TeacherClient
from student_trainer.metrics import read_metrics
from student_trainer.teacher_process import TeacherProcess
from tests import training
from tests.teacher_server.calls import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STEPS = 20
NAMES = ("loss", "ce", "kd", "grad_norm")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(tiny_checkpoint) -> dict[str, object]:
    return {
        "model.config_overrides": {"num_hidden_layers": 1},
        "distill.teacher_model_path": tiny_checkpoint,
        "train.global_batch_size": 8,
        "train.max_steps": NUM_STEPS,
    }


@pytest.fixture
def server(tiny_checkpoint, tmp_path) -> Iterator[TeacherProcess]:
    with TeacherProcess(
        str(tiny_checkpoint),
        log_path=tmp_path / "server.log",
        # Rows of any lengths go together.
        extra_arguments=["--max-padding-fraction=0.9", "--num-threads=1"],
    ) as running:
        yield running


def torchrun(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "student_trainer.train", *command),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def check_close(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("step", "lr", "num_masked", "num_tokens"):
            assert one[name] == other[name]
        # Float32 sums in another order, on both sides of the wire.
        for name in NAMES:
            assert one[name] == pytest.approx(other[name], rel=1e-5)


def test_two_ranks_train_as_one_would(data, settings, server, tmp_path):
    with TeacherClient(server.address) as client:
        more = {"distill.teacher_address": server.address, "train.save_steps": 12}
        command = training.arguments(
            tmp_path / "two", data, settings | more | {"train.micro_batch_size": 2}
        )
        finished = torchrun(command)
        assert finished.returncode == 0, finished.stderr
        (load,) = client.load()

    # Requests of both ranks stand in one batch.
    assert load.num_shared_forwards > 0
    assert load.num_done_rows == load.num_admitted_rows == 8 * NUM_STEPS

    two = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert finished.stdout.count("micro_batch_size: 2") == 1
    check_close(two, training.run(training.arguments(tmp_path / "one", data, settings | more)))
    student = checkpoints.load_denoiser(str(tmp_path / "two" / "hf_ckpt"))
    assert student.model.config.num_hidden_layers == 1

    # What two ranks saved, one goes on from.
    resumed = {"train.load_checkpoint_path": tmp_path / "two" / "checkpoints" / "step-12"}
    check_close(
        training.run(training.arguments(tmp_path / "resumed", data, settings | more | resumed)),
        two[12:],
    )


def test_ranks_that_fail_end_together_with_their_own_teacher(data, settings, tmp_path):
    more = {"model.config_overrides": {}, "distill.distillation_alpha": 1}
    finished = torchrun(training.arguments(tmp_path, data, settings | more))

    assert finished.returncode == 1
    lines = [line for line in finished.stderr.splitlines() if line.startswith("distill train")]
    assert any("the distillation loss is zero" in line for line in lines)
    # One server for the ranks of a machine.
    assert [path.name for path in tmp_path.glob("*.log")] == ["teacher_server_0.log"]
    log = (tmp_path / "teacher_server_0.log").read_text()
    clients = {word for word in log.split() if word.startswith("client=rank")}
    assert {client.partition("-")[0] for client in clients} == {"client=rank0", "client=rank1"}
    option = f"--model={settings['distill.teacher_model_path']}"
    # It ends by itself when its rank is gone.
    wait_until(
        lambda: all(
            option not in (process.info["cmdline"] or [])
            for process in psutil.process_iter(["cmdline"])
        ),
        limit_s=30,
    )
