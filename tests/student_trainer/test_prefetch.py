"""The window of work ahead of its reader."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from student_trainer.prefetch import Prefetcher

WAIT_S = 20.0


def test_results_come_in_the_order_of_their_items():
    released = [threading.Event() for _ in range(6)]

    def fetch(item: int) -> int:
        # The later of two neighbours is done first.
        if item % 2:
            released[item].set()
        else:
            assert released[item + 1].wait(WAIT_S)
        return item * item

    with Prefetcher(range(6), fetch, window=2) as prefetcher:
        assert list(prefetcher) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("window", [1, 3])
def test_no_more_than_the_window_is_started_ahead(window):
    started: list[int] = []

    with Prefetcher(range(10), started.append, window=window) as prefetcher:
        for num_read, _ in enumerate(prefetcher, start=1):
            assert len(started) <= num_read + window
    assert sorted(started) == list(range(10))


def test_the_whole_window_is_in_flight_at_once():
    together = threading.Barrier(3, timeout=WAIT_S)
    with Prefetcher(range(6), lambda _: together.wait(), window=3) as prefetcher:
        assert len(list(prefetcher)) == 6


def test_items_are_taken_from_their_source_by_the_reader_alone():
    takers = set()

    def items():
        for item in range(5):
            takers.add(threading.get_ident())
            yield item

    with Prefetcher(items(), lambda item: item, window=2) as prefetcher:
        assert list(prefetcher) == list(range(5))
    assert takers == {threading.get_ident()}


def test_an_error_is_raised_where_its_result_would_have_come():
    def fetch(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    read: list[int] = []
    with (
        pytest.raises(ValueError, match="item 3"),
        Prefetcher(range(9), fetch, window=4) as prefetcher,
    ):
        read.extend(prefetcher)
    assert read == [0, 1, 2]


def test_leaving_breaks_what_is_in_flight_and_starts_nothing_more():
    broken = threading.Event()
    started = []

    def fetch(item: int) -> None:
        started.append(item)
        assert broken.wait(WAIT_S)

    began_s = time.monotonic()
    with Prefetcher(range(9), fetch, window=2, on_close=broken.set):
        pass
    assert time.monotonic() - began_s < WAIT_S / 2
    assert len(started) <= 2
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_leaving_while_another_thread_reads_does_not_hang():
    broken = threading.Event()

    def fetch(_: int) -> None:
        assert broken.wait(WAIT_S)
        raise InterruptedError("broken")

    with ThreadPoolExecutor(1) as pool:
        with Prefetcher(range(9), fetch, window=2, on_close=broken.set) as prefetcher:
            reading = pool.submit(next, iter(prefetcher))
        assert isinstance(reading.exception(timeout=WAIT_S), InterruptedError)


def test_no_items_give_no_results():
    with Prefetcher(list[int](), str, window=2) as prefetcher:
        assert list(prefetcher) == []


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Prefetcher([], str, window=0)
