"""One teacher on two ranks with gloo, beside the same teacher in one process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from masked_diffusion.families import Denoiser
from protos import codec
from student_trainer import wire
from student_trainer.client import TeacherClient
from tests.servers import serve
from tests.teacher_server.calls import make_state, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

READY = "teacher-server listening on "
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0
# Float32 sums in another order.
TOLERANCE = 1e-5


class Ranks:
    """Two processes as torchrun would start them, but without its supervision."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._logs = [folder / f"rank{rank}.log" for rank in range(2)]
        self.processes = []
        for rank, log_path in enumerate(self._logs):
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    server_command(model),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            self.processes.append(process)

    def wait_ready(self) -> str:
        """The address that rank 0 serves at."""
        stdout = self.processes[0].stdout
        assert stdout is not None
        line = stdout.readline().strip()
        assert line.startswith(READY), self.log(0)
        return line.removeprefix(READY)

    def wait(self, rank: int) -> int:
        """Waits for its end; gives its exit code."""
        return self.processes[rank].wait(END_TIMEOUT_S)

    def log(self, rank: int) -> str:
        return self._logs[rank].read_text()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def server_command(model: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "teacher_server.server", f"--model={model}", "--tensor-parallel"),
        *("--listen=127.0.0.1:0", "--num-threads=1", "--max-padding-fraction=0.9"),
        # An idle rank 0 hears of the other's end at its next proof, within half of this.
        "--health-interval-s=2",
    ]


@pytest.fixture
def start(tiny_checkpoint, tmp_path) -> Iterator[Callable[[], Ranks]]:
    started = []

    def new_ranks() -> Ranks:
        started.append(Ranks(tiny_checkpoint, tmp_path))
        return started[-1]

    yield new_ranks
    for ranks in started:
        ranks.close()


def scores(client: TeacherClient, denoiser: Denoiser) -> dict[tuple[str, int], codec.StepTargets]:
    """Targets of rows of several lengths, alone and batched, in each encoding."""
    lengths = (5, 40, 33, 17)
    states = [make_state(denoiser.info, length=n, num_masked=3, seed=n) for n in lengths]
    found = {}
    for encoding in ("hidden", "logits"):
        spec = wire.TargetSpec(encoding=encoding)
        for ids in ([0], [1, 2, 3]):
            chosen = [states[i] for i in ids]
            for record in client.score(chosen, sequence_ids=ids, targets=spec):
                found[encoding, record.sequence_id] = record
    return found


def values(record: codec.StepTargets) -> np.ndarray:
    distribution = record.distribution
    assert isinstance(distribution, codec.Hidden | codec.Logits)
    return distribution.values.data


def test_two_ranks_serve_what_one_process_serves(start, tiny_denoiser):
    ranks = start()
    with serve(tiny_denoiser) as alone, TeacherClient(alone.address) as client:
        expected = scores(client, tiny_denoiser)
        description, head_VD = client.describe(), client.head().weight_VD

    with TeacherClient(ranks.wait_ready()) as client:
        found = scores(client, tiny_denoiser)
        assert client.describe() == description
        np.testing.assert_array_equal(client.head().weight_VD, head_VD)

    assert found.keys() == expected.keys()
    for key, record in found.items():
        np.testing.assert_allclose(
            values(record), values(expected[key]), rtol=TOLERANCE, atol=TOLERANCE
        )
        assert record.revision == expected[key].revision

    # torchrun signals every rank; the follower leaves the decision to rank 0.
    for process in reversed(ranks.processes):
        process.send_signal(signal.SIGTERM)
    assert [ranks.wait(rank) for rank in range(2)] == [0, 0]
    assert "stopped drained=True" in ranks.log(0)


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        pytest.param(0, "teacher-server: rank 0 is gone", id="leader"),
        pytest.param(1, "DenoiserLostError: the ranks are out of step", id="follower"),
    ],
)
def test_a_rank_that_is_killed_ends_the_other(start, victim, reason):
    ranks = start()
    ranks.wait_ready()

    ranks.processes[victim].kill()

    survivor = 1 - victim
    assert ranks.wait(survivor) == 1
    assert reason in ranks.log(survivor)


def test_torchrun_starts_and_ends_both_ranks(tiny_checkpoint, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        torchrun = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", *server_command(tiny_checkpoint)[1:]),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with torchrun:
        assert torchrun.stdout is not None
        assert torchrun.stdout.readline().startswith(READY), (tmp_path / "log").read_text()
        ranks = psutil.Process(torchrun.pid).children(recursive=True)
        torchrun.terminate()
        torchrun.wait(END_TIMEOUT_S)

    assert len(ranks) >= 2
    wait_until(lambda: not any(rank.is_running() for rank in ranks))
    assert "stopped drained=True" in (tmp_path / "log").read_text()
