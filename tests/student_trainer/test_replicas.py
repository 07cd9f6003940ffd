"""Which replica is asked next, and again; tests/student_trainer/test_client.py has real servers."""

import contextlib
import itertools
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from protos import errors
from student_trainer.replicas import Replica, Replicas, RetryPolicy

WAIT_S = 20.0
POLICY = RetryPolicy(call_timeout_s=5.0, give_up_after_s=10.0)


@pytest.fixture
def replicas():
    """Two of them; nobody listens there, and nobody is called."""
    with contextlib.closing(Replicas(["127.0.0.1:1", "127.0.0.1:2"], POLICY)) as found:
        yield found


def names(replicas: Replicas) -> list[str]:
    return [replica.name for replica in replicas]


def test_addresses_may_stand_in_one_text(replicas):
    with contextlib.closing(Replicas(" 127.0.0.1:1 ,127.0.0.1:2,", POLICY)) as found:
        assert names(found) == names(replicas)


def test_calls_one_after_another_take_turns(replicas):
    def ask(replica: Replica) -> Generator[str]:
        yield replica.name

    asked = [name for _ in range(6) for name in replicas.persist(ask)]
    assert asked == names(replicas) * 3


def test_a_call_goes_where_the_fewest_are_in_flight(replicas):
    def ask(replica: Replica) -> Generator[str]:
        yield replica.name
        yield replica.name

    waiting = replicas.persist(ask)
    first, second = names(replicas)
    assert next(waiting) == first
    assert [list(replicas.persist(ask)) for _ in range(3)] == [[second] * 2] * 3
    assert list(waiting) == [first]
    # Now it is the one with fewer calls.
    assert list(replicas.persist(ask)) == [first] * 2


def test_what_failed_is_asked_elsewhere_and_goes_on_there(replicas):
    first, second = names(replicas)
    left = [1, 2, 3]

    def ask(replica: Replica) -> Generator[tuple[str, int]]:
        while left:
            yield replica.name, left.pop(0)
            if replica.name == first:
                raise errors.CorruptStreamError("broken")

    assert list(replicas.persist(ask)) == [(first, 1), (second, 2), (second, 3)]
    assert replicas.num_retries == 1


def test_calls_that_break_together_are_one_failure_of_their_replica(replicas):
    together = threading.Barrier(4, timeout=WAIT_S)
    calls = itertools.count(1)
    dead, alive = replicas

    def ask(replica: Replica) -> Generator[None]:
        if next(calls) <= 4:
            together.wait()
            if replica is dead:
                raise errors.CorruptStreamError("broken")
        yield None

    began_s = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: list(replicas.persist(ask)), range(4)))
    assert replicas.num_retries == 2
    assert alive.penalty_until_s == 0
    # The first penalty, once: 2 s from when it broke.
    assert dead.penalty_until_s - began_s < 2 + (time.monotonic() - began_s)
    assert dead.penalty_s == 4


def test_an_error_that_no_retry_mends_is_raised_at_once(replicas):
    def ask(replica: Replica) -> Generator[int]:
        yield 1
        raise errors.RevisionMismatchError("other weights")

    found = replicas.persist(ask)
    assert next(found) == 1
    with pytest.raises(errors.RevisionMismatchError):
        next(found)
    assert replicas.num_retries == 0
    assert [replica.num_in_flight for replica in replicas] == [0, 0]


def test_patience_ends_with_all_names_and_the_last_reason():
    def ask(replica: Replica) -> Generator[int]:
        raise errors.CorruptStreamError(f"broken at {replica.name}")
        yield 1

    policy = RetryPolicy(give_up_after_s=0.2)
    with contextlib.closing(Replicas("127.0.0.1:1,127.0.0.1:2", policy)) as replicas:
        with pytest.raises(
            errors.CorruptStreamError,
            match=r"no progress with 127.0.0.1:1, 127.0.0.1:2 for \d s: broken at 127.0.0.1:[12]$",
        ):
            list(replicas.persist(ask))
        assert replicas.num_retries >= 1


@pytest.mark.parametrize("hint_s", [0.0, -5.0, 0.001])
def test_a_hint_never_makes_it_spin(replicas, hint_s):
    num_left = 3

    def ask(replica: Replica) -> Generator[int]:
        nonlocal num_left
        num_left -= 1
        if num_left >= 0:
            raise errors.CorruptStreamError("broken", retry_after_s=hint_s)
        yield 1

    began_s = time.monotonic()
    assert list(replicas.persist(ask)) == [1]
    # Half of 0.1, 0.2 and 0.4 s at least.
    assert time.monotonic() - began_s > 0.35


def test_closing_ends_the_pause_that_a_hint_asks_for(replicas):
    asked = threading.Event()

    def ask(replica: Replica) -> Generator[int]:
        asked.set()
        raise errors.CorruptStreamError("broken", retry_after_s=1e9)
        yield 1

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, replicas.persist(ask))
        assert asked.wait(WAIT_S)
        replicas.close()
        assert isinstance(waiting.exception(timeout=WAIT_S), errors.TeacherError)
    with pytest.raises(errors.CancelledError, match="the client is closed"):
        list(replicas.persist(ask))
