"""Ranks, where there is one; tests/integration/test_distributed.py has two of them."""

import pytest
import torch
import torch.distributed as dist

from student_trainer.parallel import start_parallel
from tests import failing_ranks, ranks
from tests.training import ONE_RANK


def test_without_torchrun_there_is_one_rank_and_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with start_parallel() as parallel:
        assert (parallel.rank, parallel.world_size, parallel.local_rank) == (0, 1, 0)
        assert parallel.is_main
        assert not dist.is_initialized()


def test_a_group_ends_with_its_block_however_that_ends(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="in the block"), start_parallel() as parallel:
        assert dist.is_initialized()
        assert parallel.device == torch.device("cpu")
        raise ValueError("in the block")
    assert not dist.is_initialized()


def test_one_rank_is_all_ranks():
    assert ONE_RANK.sum([1.5, 2.0]) == [1.5, 2.0]
    assert ONE_RANK.maximum(3.0) == 3.0
    assert ONE_RANK.gather("x") == ["x"]
    assert not ONE_RANK.has_group
    with ONE_RANK.first_of_node_goes_first():
        pass


def test_a_rank_that_goes_first_may_take_longer_than_a_collective_waits(tmp_path):
    running = ranks.start(failing_ranks.go_one_after_another, num_ranks=2, folder=tmp_path)
    assert running.wait() == [0, 0], running.output()
    (begun_s, through_s), (entered_s, _) = (
        map(float, log.read_text().splitlines()[-1].split()) for log in running.logs
    )
    assert through_s - begun_s >= 2.0
    assert entered_s >= through_s
