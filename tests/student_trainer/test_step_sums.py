"""Sums of a step: one list for all ranks, and means by ranges of t."""

import pytest

from student_trainer.losses import NUM_TIME_BUCKETS
from student_trainer.step_sums import StepSums, peak_rss_mib


def test_a_list_of_numbers_is_read_back_as_it_was():
    sums = StepSums(loss=1.5, num_masked=3.0, num_stop_requests=1.0)
    sums.by_time = [float(k) for k in range(3 * NUM_TIME_BUCKETS)]
    assert StepSums.from_list(sums.to_list()) == sums


def test_ranks_are_added_by_adding_their_lists():
    lists = [StepSums(loss=loss, wait_s=2.0).to_list() for loss in (1.0, 4.0)]
    total = StepSums.from_list([a + b for a, b in zip(*lists, strict=True)])
    assert (total.loss, total.wait_s, total.num_masked) == (5.0, 4.0, 0.0)


def test_losses_by_time_are_means_and_ranges_without_a_position_are_left_out():
    assert NUM_TIME_BUCKETS == 4
    counts, ces, kds = [2.0, 0.0, 0.0, 4.0], [3.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 8.0]
    sums = StepSums(by_time=[*counts, *ces, *kds])
    assert sums.loss_by_time() == {
        "ce_t0.25": pytest.approx(1.5),
        "kd_t0.25": pytest.approx(0.5),
        "ce_t1": pytest.approx(0.5),
        "kd_t1": pytest.approx(2.0),
    }


def test_the_peak_of_memory_only_grows():
    before = peak_rss_mib()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_rss_mib() >= before > 10
