"""Runs that are killed, asked to stop, or left by one of their ranks."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from student_trainer.metrics import read_metrics
from tests import interrupted_runs, training
from tests.bench import resume

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
    code = interrupted_runs.interrupt(
        interrupted_runs.start(command), metrics, after_step=3, number=signal.SIGTERM
    )
    assert code == 0
    num_done = len(read_metrics(metrics))
    assert 3 <= num_done < NUM_STEPS
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{num_done}"
    assert not (tmp_path / "run" / "hf_ckpt").exists()
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    steps = training.run([*command, f"--train.max_steps={num_done + 2}"])
    assert [step["step"] for step in steps] == list(range(1, num_done + 3))


def test_a_rank_that_fails_alone_ends_the_others_with_one_line():
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.integration.fail_on_rank"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert finished.returncode == 1
    lines = [line for line in finished.stderr.splitlines() if "the disk is full" in line]
    assert sorted(lines) == [
        "distill train (rank 0): stopped, rank 1 failed: the disk is full",
        "failed: the disk is full",
    ]
    assert "gloo" not in finished.stderr
