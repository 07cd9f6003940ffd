"""A teacher that is killed and started again in the middle of a run costs nothing but time."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from masked_diffusion import checkpoints
from student_trainer.teacher_process import TeacherProcess
from tests import training
from tests.teacher_server.calls import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STEPS = 30
KILL_AFTER_STEP = 4
STATES = {
    "noised": {},
    "trajectory": {
        "distill.state_source": "trajectory",
        "distill.num_sampling_steps": 12,
        "distill.collect_every_n_steps": 2,
        "distill.states_per_trajectory": 0,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


class Restarter:
    """A teacher-server process on one port, which can die and come back."""

    def __init__(self, model: Path, log_path: Path) -> None:
        self._model, self._log_path = str(model), log_path
        self._process = self._start("127.0.0.1:0")
        self.address = self._process.address

    def _start(self, listen: str) -> TeacherProcess:
        # One row a step: equal requests have bit-identical answers, whoever else asks.
        return TeacherProcess(
            self._model,
            log_path=self._log_path,
            listen=listen,
            extra_arguments=["--deterministic", "--num-threads=1"],
        ).__enter__()

    def restart(self) -> None:
        """SIGKILL in the middle of whatever it does, then the same weights on the same port."""
        os.kill(self._process.pid, signal.SIGKILL)
        self.stop()
        self._process = self._start(self.address)

    def stop(self) -> None:
        self._process.__exit__(None, None, None)


@pytest.fixture
def server(tiny_checkpoint, tmp_path) -> Iterator[Restarter]:
    restarter = Restarter(tiny_checkpoint, tmp_path / "server.log")
    yield restarter
    restarter.stop()


def test_a_killed_and_restarted_teacher_changes_no_number(data, server, tiny_checkpoint, tmp_path):
    def command(folder: Path, states: str) -> list[str]:
        settings = {
            "model.config_overrides": {"num_hidden_layers": 1},
            "distill.teacher_address": server.address,
            "distill.teacher_model_path": tiny_checkpoint,
            "train.max_steps": NUM_STEPS,
        }
        return training.arguments(folder, data, settings | STATES[states])

    def digest(folder: Path) -> str:
        return checkpoints.weights_digest(checkpoints.load_denoiser(str(folder / "hf_ckpt")))

    whole = {name: training.run(command(tmp_path / name, name)) for name in STATES}

    for name in STATES:
        folder = tmp_path / f"{name}_restarted"
        metrics_path = folder / "metrics.jsonl"

        def num_steps(path: Path = metrics_path) -> int:
            return path.read_bytes().count(b"\n") if path.exists() else 0

        def restart() -> None:
            wait_until(lambda: num_steps() >= KILL_AFTER_STEP, limit_s=60)
            server.restart()

        restarting = threading.Thread(target=restart)
        restarting.start()
        metrics = training.run(command(folder, name))
        restarting.join()

        ignored = (*training.TIMES, *training.ASKING)
        assert training.without(metrics, *ignored) == training.without(whole[name], *ignored)
        assert whole[name][-1]["num_retries"] == 0
        assert metrics[-1]["num_retries"] > 0
        # It died before the end: the wait for the new one is in a later step.
        assert max(step["teacher_wait_s"] for step in metrics[KILL_AFTER_STEP:]) > 1
        assert digest(folder) == digest(tmp_path / name)
        # What arrived before is not sent again.
        assert metrics[-1]["num_target_bytes"] == whole[name][-1]["num_target_bytes"]
