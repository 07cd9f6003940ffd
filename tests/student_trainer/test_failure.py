"""One rank's end ends the others; with ranks in collectives: tests/integration."""

import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from student_trainer.failure import FailureWatch
from tests import failing_ranks, ranks


def test_a_block_that_ends_well_leaves_nothing_running():
    store = dist.HashStore()
    with FailureWatch(store, rank=0, world_size=1) as watch:
        assert watch._thread.is_alive()
    assert not watch._thread.is_alive()
    assert not store.check(["student_trainer/failure"])


def test_a_failure_is_told_once_in_one_line():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    with pytest.raises(ValueError, match="full"), FailureWatch(store, rank=0, world_size=1):
        raise ValueError("the disk\nis full")
    assert store.get("student_trainer/failure") == b"0\nrank 0 failed: the disk is full"


def test_ranks_outside_of_any_collective_hear_of_a_failure(tmp_path: Path):
    running = ranks.start(failing_ranks.fail_on_last, num_ranks=3, folder=tmp_path)
    assert running.wait(timeout_s=60) == [1, 1, 1]
    stopped = "stopped, rank 2 failed: the disk is full"
    assert sorted(running.output().splitlines()) == [
        f"distill train (rank 0): {stopped}",
        f"distill train (rank 1): {stopped}",
        "failed: the disk is full",
    ]


def test_a_rank_that_is_killed_outside_of_any_collective_is_missed(tmp_path: Path):
    running = ranks.start(failing_ranks.wait_without_end, 2.0, num_ranks=3, folder=tmp_path)
    running.wait_for_output("waits", num_lines=3)
    running.processes[1].kill()
    assert running.wait(timeout_s=60) == [1, -signal.SIGKILL, 1]
    lines = [line for line in running.output().splitlines() if line != "waits"]
    assert len(lines) == 2
    assert all("stopped, rank 1 is gone: no sign of life for 2 s" in line for line in lines)


def test_a_rank_that_is_done_is_not_missed(tmp_path: Path):
    # The second goes on three times longer than silence is allowed.
    ranks.run(failing_ranks.end_one_after_another, 1.5, num_ranks=2, folder=tmp_path)
