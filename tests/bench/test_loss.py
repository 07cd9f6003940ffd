import dataclasses
import json

import pytest
import torch

from tests.bench import loss, turns
from tests.bench.loss_arms import DIVERGENCES, LossWorkload

TINY = LossWorkload(vocab_size=300, hidden_size=8, num_positions=40, max_chunk_elements=3000)
MIB = 2**20


def test_a_turn_counts_the_memory_that_its_work_needs_at_its_height():
    taken = turns.measure(lambda: float(torch.ones(16 * MIB).sum()))
    assert taken.value == 16 * MIB
    assert 60 * MIB < taken.extra_bytes < 90 * MIB
    assert turns.measure(lambda: 0.0).extra_bytes < 4 * MIB


def test_a_peak_is_carried_over_to_all_positions_but_for_the_gradient_of_the_head():
    workload = LossWorkload(vocab_size=1000, hidden_size=10, num_positions=1024)
    turn = [{"extra_bytes": 40_000 + 1_000_000}]
    assert loss.peak_bytes(turn, workload, is_chunked=False) == 40_000 + 4_000_000
    assert loss.peak_bytes(turn, workload, is_chunked=True) == 1_040_000 + 3072 * 40


def test_every_implementation_is_timed_and_gives_the_same_loss():
    # It raises where the losses differ.
    result = loss.measure(TINY, num_rounds=2)
    json.dumps(result)
    assert set(result["divergences"]) == set(DIVERGENCES)
    assert result["chunked_time_ratio"] == max(
        figures["chunked_time_ratio"] for figures in result["divergences"].values()
    )
    assert all(len(taken) == 2 for taken in result["turns"].values())
    assert "chunked_peak_ratio" in loss.table(result)
    assert len(loss.figure(result).axes) == 2


def test_a_work_that_fails_ends_the_bench_and_is_named():
    workload = dataclasses.replace(TINY, max_chunk_elements=0)
    with pytest.raises(RuntimeError, match="the work chunked_forward_kl failed"):
        loss.measure(workload, num_rounds=1)
