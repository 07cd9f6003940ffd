"""No address, only the teacher's checkpoint: a server of our own, which never outlives the run."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from student_trainer import train
from tests import training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(tiny_checkpoint) -> dict[str, object]:
    return {
        "distill.teacher_model_path": tiny_checkpoint,
        "model.config_overrides": {"num_hidden_layers": 1},
    }


def servers_of(parent: psutil.Process) -> list[psutil.Process]:
    """The teacher-servers that the process started."""
    return [
        child for child in parent.children() if "teacher_server.server" in " ".join(child.cmdline())
    ]


def is_gone(process: psutil.Process) -> bool:
    """True once it ended, whether or not somebody asked for its exit code."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], *, limit_s: float) -> None:
    """Polls until the condition holds; fails after the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.05)


def test_a_run_starts_its_own_teacher_and_stops_it(data, settings, tmp_path):
    metrics = training.run(training.arguments(tmp_path, data, settings))

    assert all(step["kd"] > 0 for step in metrics)
    assert not servers_of(psutil.Process())
    log = (tmp_path / "teacher_server_0.log").read_text()
    # One request a micro-step, all from this client, and none after the last of them.
    assert log.count("kind=score status=ok") == len(metrics)
    assert "stopped drained=True" in log


def test_a_run_that_fails_stops_its_teacher_too(data, settings, tmp_path, capsys):
    more = {"model.config_overrides": {}, "distill.distillation_alpha": 1}
    command = training.arguments(tmp_path, data, settings | more)
    assert train.main(command) == train.EXIT_FAILED
    assert "the distillation loss is zero" in capsys.readouterr().err
    assert not servers_of(psutil.Process())
    assert "stopped drained=" in (tmp_path / "teacher_server_0.log").read_text()


def test_a_teacher_that_cannot_start_ends_the_run_with_its_reason(data, tmp_path, capsys):
    missing, log_path = tmp_path / "missing", tmp_path / "teacher_server_0.log"
    log_path.write_text("teacher-server: the reason of an earlier run\n")
    command = training.arguments(tmp_path, data, {"distill.teacher_model_path": missing})
    assert train.main(command) == train.EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distill train: teacher-server ended with code 1 ")
    assert f"before it was ready: no such folder: {missing}" in line
    assert f"(whole log: {log_path})" in line
    assert "earlier run" not in line


def test_a_trainer_that_is_killed_takes_its_teacher_with_it(data, settings, tmp_path):
    more = {"train.max_steps": 1_000_000}
    command = training.arguments(tmp_path, data, settings | more)
    with (tmp_path / "log").open("wb") as log:
        trainer = subprocess.Popen(
            [sys.executable, "-m", "student_trainer.train", *command], stdout=log, stderr=log
        )
    try:
        metrics = tmp_path / "metrics.jsonl"
        wait_until(
            lambda: trainer.poll() is not None or (metrics.exists() and metrics.stat().st_size > 0),
            limit_s=120,
        )
        assert trainer.poll() is None, (tmp_path / "log").read_text()
        (server,) = servers_of(psutil.Process(trainer.pid))
    finally:
        # SIGKILL: nothing of the trainer's own runs any more.
        trainer.kill()
        trainer.wait()
    wait_until(lambda: is_gone(server), limit_s=60)
    assert "stopped drained=" in (tmp_path / "teacher_server_0.log").read_text()
