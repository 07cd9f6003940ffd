"""Runs that are killed, asked to stop, or left by one of their ranks."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from student_trainer.metrics import read_metrics
from tests import failing_ranks, interrupted_runs, ranks, training
from tests.bench import resume
from tests.servers import serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STEPS = 400


def test_a_run_that_was_killed_goes_on_bit_for_bit():
    result = resume.run(quick=True)
    assert result["resume_max_abs_diff"] == 0
    assert result["weights_max_abs_diff"] == 0


def test_sigterm_saves_and_exits_0_and_the_run_goes_on_from_there(tiny_checkpoint, tmp_path):
    settings = {
        "distill.distillation_alpha": 0.0,
        "distill.teacher_model_path": tiny_checkpoint,
        "train.max_steps": NUM_STEPS,
        "train.load_checkpoint_path": "auto",
    }
    command = training.arguments(tmp_path / "run", training.write_texts(tmp_path), settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    codes = interrupted_runs.interrupt(
        interrupted_runs.start(command, folder=tmp_path),
        metrics,
        after_step=3,
        number=signal.SIGTERM,
    )
    assert codes == [0]
    num_done = len(read_metrics(metrics))
    assert 3 <= num_done < NUM_STEPS
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{num_done}"
    assert not (tmp_path / "run" / "hf_ckpt").exists()
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    steps = training.run([*command, f"--train.max_steps={num_done + 2}"])
    assert [step["step"] for step in steps] == list(range(1, num_done + 3))


def test_a_rank_that_fails_alone_ends_the_others_with_one_line(tmp_path):
    running = ranks.start(failing_ranks.fail_beside_a_collective, num_ranks=2, folder=tmp_path)
    assert running.wait(timeout_s=120) == [1, 1]
    assert sorted(running.output().splitlines()) == [
        "distill train (rank 0): stopped, rank 1 failed: the disk is full",
        "failed: the disk is full",
    ]


def test_a_rank_that_is_killed_under_torchrun_is_named_by_the_others(tiny_checkpoint, tmp_path):
    settings = {
        "distill.distillation_alpha": 0.0,
        "distill.teacher_model_path": tiny_checkpoint,
        "train.max_steps": NUM_STEPS,
        "train.data_parallel_mode": "fsdp",
        "train.use_tensorboard": False,
    }
    command = training.arguments(tmp_path / "run", training.write_texts(tmp_path), settings)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "student_trainer.train", *command),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    interrupted_runs.wait_for_step(metrics, step=2, is_running=lambda: process.poll() is None)
    # torchrun stops the others by SIGTERM then, which is no request to save.
    for rank in psutil.Process(process.pid).children():
        if rank.environ()["RANK"] == "1":
            rank.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in output.splitlines() if line.startswith("distill train")]
    assert line.startswith("distill train (rank 0): stopped, rank 1 is gone: it ended without")
    assert "Connection closed" not in output


def test_an_own_teacher_that_dies_ends_the_run_at_once_and_its_checkpoint_is_of_use(
    tiny_checkpoint, tiny_denoiser, tmp_path
):
    settings = {
        "distill.teacher_model_path": tiny_checkpoint,
        "model.config_overrides": {"num_hidden_layers": 1},
        "train.max_steps": NUM_STEPS,
        "train.save_steps": 1,
        "train.load_checkpoint_path": "auto",
        "train.use_tensorboard": False,
    }
    command = training.arguments(tmp_path / "run", training.write_texts(tmp_path), settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    running = interrupted_runs.start(command, folder=tmp_path)
    interrupted_runs.wait_for_step(metrics, step=2, is_running=running.is_running)
    (teacher,) = psutil.Process(running.processes[0].pid).children()
    teacher.kill()
    killed_s = time.monotonic()
    assert running.wait(timeout_s=60) == [1]
    # Far below distill.teacher_timeout_s, which is for teachers that may come back.
    assert time.monotonic() - killed_s < 30
    (line,) = [line for line in running.output().splitlines() if line.startswith("distill train")]
    assert line.startswith("distill train: the run's own teacher-server ended with code -9: ")
    assert line.endswith(f"(whole log: {tmp_path / 'run' / 'teacher_server_0.log'})")

    num_done = len(read_metrics(metrics))
    with serve(tiny_denoiser) as server:
        address = f"--distill.teacher_address={server.address}"
        steps = training.run([*command, address, f"--train.max_steps={num_done + 1}"])
    assert [step["step"] for step in steps] == list(range(1, num_done + 2))
