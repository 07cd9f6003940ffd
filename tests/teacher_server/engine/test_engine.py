import time
from collections.abc import Iterator

import numpy as np
import pytest

from masked_diffusion.families import Denoiser
from protos import errors
from protos import teacher_pb2 as pb
from teacher_server.engine.engine import Engine
from teacher_server.engine.model_runner import DenoiserLostError
from teacher_server.engine.sequence import Request
from teacher_server.engine.stream import StreamEnd
from tests.teacher_server import calls
from tests.teacher_server.calls import wait_until
from tests.teacher_server.denoisers import ControlledDenoiser
from tests.teacher_server.engines import EngineRun, run_engine

LENGTH = 16
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)
ANCESTRAL = pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=12)


@pytest.fixture
def denoiser(tiny_denoiser: Denoiser) -> Iterator[ControlledDenoiser]:
    controlled = ControlledDenoiser(tiny_denoiser)
    yield controlled
    controlled.allow()


def _states(
    denoiser: Denoiser, count: int, *, length: int = LENGTH, first_seed: int = 0
) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=length, num_masked=length // 2, seed=seed)
        for seed in range(first_seed, first_seed + count)
    ]


def _trajectories(
    denoiser: Denoiser,
    count: int,
    *,
    client_id: str = "client",
    num_steps: int = 12,
    first_seed: int = 0,
) -> pb.SampleTrajectoriesRequest:
    return calls.trajectory_request(
        _states(denoiser, count, first_seed=first_seed),
        sampler=pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=num_steps),
        capture=EVERY_STEP,
        client_id=client_id,
    )


def _holding(denoiser: ControlledDenoiser, run: EngineRun) -> Request:
    """Keeps the engine in a forward, so that what follows is admitted together."""
    denoiser.hold()
    request = run.score(_states(denoiser, 1), client_id="holder")
    denoiser.wait_held()
    return request


def test_rows_that_are_done_are_counted_and_freed(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        requests = [run.score(_states(denoiser, 5)), run.sample(_trajectories(denoiser, 3))]
        for request in requests:
            assert run.read(request)[2] is None
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 8}


def test_an_empty_request_ends_well_at_once(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        assert run.read(run.score([])) == ([], [], None)
        run.assert_nothing_is_left()


def test_rows_of_a_closed_request_are_freed_within_two_forwards(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        gone = run.sample(_trajectories(denoiser, 4, num_steps=50))
        denoiser.allow(3)
        denoiser.wait_held()
        num_forwards = len(denoiser.batches)
        run.engine.close(gone)
        denoiser.allow()
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 1, "cancelled": 4}
        assert len(denoiser.batches) - num_forwards <= 2


def test_a_request_closed_while_it_waits_never_runs(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        gone = run.score(_states(denoiser, 4))
        run.engine.close(gone)
        denoiser.allow()
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 1, "cancelled": 4}
        assert len(denoiser.batches) == 1


def test_closing_what_has_ended_changes_nothing(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        request = run.score(_states(denoiser, 2))
        run.read(request)
        run.engine.close(request)
        run.engine.close(request)
        run.read(run.score(_states(denoiser, 1)))
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 3}


def test_rows_past_their_deadline_expire(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        late = run.score(_states(denoiser, 4), remaining_s=0.0)
        timely = run.score(_states(denoiser, 2), remaining_s=60.0)
        denoiser.allow()
        targets, _, error = run.read(late)
        assert not targets
        assert isinstance(error, errors.DeadlineError)
        assert run.read(timely)[2] is None
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 3, "expired": 4}


def test_a_stalled_row_expires_too(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        stalled = run.sample(_trajectories(denoiser, 3), window_bytes=1, remaining_s=0.2)
        wait_until(lambda: not stalled.rows)
        run.assert_nothing_is_left()
        assert run.outcomes() == {"expired": 3}
        assert isinstance(run.read(stalled)[2], errors.DeadlineError)


def test_a_failed_forward_fails_its_requests_alone(denoiser: ControlledDenoiser) -> None:
    denoiser.poison_id = 7
    clean = [np.where(state == 7, 8, state) for state in _states(denoiser, 3)]
    poisoned = [calls.filled_state(denoiser.info, 7, length=2 * LENGTH), *clean[:1]]
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        failing = run.score(poisoned, client_id="failing")
        others = run.score(clean, client_id="others")
        denoiser.allow()
        error = run.read(failing)[2]
        assert isinstance(error, errors.EngineError)
        assert str(error) == "the forward failed: RuntimeError: poisoned forward"
        targets, _, other_error = run.read(others)
        assert (len(targets), other_error) == (3, None)
        assert len(run.read(run.score(clean))[0]) == 3
        run.assert_nothing_is_left()
        # All five rows shared the forward that failed first.
        assert max(len(batch) for batch in denoiser.batches) == 5
        assert run.outcomes() == {"failed": 2, "done": 1 + 3 + 3}
        assert run.engine.load().healthy
        assert not run.deaths


def test_held_until_enough_rows_wait_the_batches_are_exact(denoiser: ControlledDenoiser) -> None:
    """Fair order: the clients by name while both were served nothing, then by what they got."""
    with run_engine(denoiser, hold_until_rows=5, max_batch_tokens=40) as run:
        one = run.score(_states(denoiser, 3, length=10), client_id="one")
        wait_until(lambda: run.engine.load().num_waiting_rows == 3)
        two = run.score(_states(denoiser, 2, length=20), client_id="two")
        for request in (one, two):
            assert run.read(request)[2] is None
        lengths = [(batch != 0).sum(-1).sort().values.tolist() for batch in denoiser.batches]
        assert lengths == [[10, 10, 20], [10, 20]]
        # Without work it waits again.
        assert not denoiser.batches[2:]
        again = run.score(_states(denoiser, 5, length=8), client_id="one")
        assert len(run.read(again)[0]) == 5
        assert [len(batch) for batch in denoiser.batches[2:]] == [5]


def test_a_dead_engine_fails_what_it_holds_and_refuses_the_rest(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser, health_interval_s=0.05) as run:
        # Nothing can run, so the engine proves itself, and cannot.
        stalled = run.sample(_trajectories(denoiser, 3), window_bytes=1)
        wait_until(lambda: not stalled.stream.has_room)
        denoiser.is_broken = True
        wait_until(lambda: bool(run.deaths))
        error = run.read(stalled)[2]
        assert isinstance(error, errors.EngineError)
        assert str(error) == "the engine died: RuntimeError: out of order"
        run.assert_nothing_is_left()
        assert run.outcomes() == {"failed": 3}
        assert not run.engine.load().healthy
        with pytest.raises(errors.EngineError, match="out of order"):
            run.score(_states(denoiser, 1))


def test_a_lost_denoiser_ends_the_engine_in_the_middle_of_a_batch(
    denoiser: ControlledDenoiser,
) -> None:
    denoiser.poison_id, denoiser.poison_error = 7, DenoiserLostError
    poisoned = [calls.filled_state(denoiser.info, 7, length=LENGTH)]
    with run_engine(denoiser) as run:
        error = run.read(run.score(poisoned))[2]
        assert isinstance(error, errors.EngineError)
        assert str(error) == "the engine died: DenoiserLostError: poisoned forward"
        wait_until(lambda: bool(run.deaths))
        run.assert_nothing_is_left()


def test_a_denoiser_that_cannot_forward_never_starts(denoiser: ControlledDenoiser) -> None:
    denoiser.is_broken = True
    with pytest.raises(RuntimeError, match="out of order"), run_engine(denoiser):
        pass


def test_a_stopped_engine_hands_back_what_is_left(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        waiting = run.score(_states(denoiser, 2))
        assert not run.engine.drain(timeout_s=0.01)
        with pytest.raises(errors.DrainingError):
            run.score(_states(denoiser, 1))
        stalled_s = time.monotonic()
        denoiser.allow()
        run.engine.stop()
        assert time.monotonic() - stalled_s < 10
        targets, _, error = run.read(waiting)
        # It ran while the stop was on its way, or was handed back.
        assert len(targets) == 2 or isinstance(error, errors.DrainingError)
        run.assert_nothing_is_left()


def test_a_drain_waits_for_admitted_rows(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        request = run.sample(_trajectories(denoiser, 3))
        assert run.engine.drain(timeout_s=30)
        assert run.engine.load().draining
        assert len(run.read(request)[1]) == 3
        assert run.outcomes() == {"done": 3}


def test_a_slow_reader_stalls_its_own_rows_alone(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        slow = run.sample(_trajectories(denoiser, 2, client_id="slow"), window_bytes=1)
        wait_until(lambda: not slow.stream.has_room)
        fast = run.sample(_trajectories(denoiser, 2, client_id="fast"))
        assert len(run.read(fast)[1]) == 2
        assert len(slow.rows) == 2
        assert not slow.stream.has_room
        # It goes on where it stopped as soon as somebody reads.
        assert len(run.read(slow)[1]) == 2
        run.assert_nothing_is_left()


def test_two_clients_share_forwards_and_so_do_scores_and_trajectories(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser) as run:
        _holding(denoiser, run)
        requests = [
            run.sample(_trajectories(denoiser, 3, client_id="one")),
            run.sample(_trajectories(denoiser, 3, client_id="two", first_seed=3)),
            run.score(_states(denoiser, 3), client_id="three"),
        ]
        denoiser.allow()
        for request in requests:
            assert run.read(request)[2] is None
        counters = run.engine.snapshot()
        assert denoiser.batches[1].shape[0] == 9
        assert counters.num_shared_forwards > 1
        assert counters.num_mixed_forwards == 1
        assert counters.num_forward_rows / counters.num_forwards > 3
        assert counters.num_forward_rows == sum(len(batch) for batch in denoiser.batches)


def test_a_small_client_is_done_before_a_large_one_that_came_first(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser, max_batch_tokens=4 * LENGTH) as run:
        _holding(denoiser, run)
        many = run.score(_states(denoiser, 60), client_id="many")
        few = run.score(_states(denoiser, 2), client_id="few")
        denoiser.allow(3)
        assert len(run.read(few)[0]) == 2
        denoiser.wait_held()
        assert len(many.rows) > 50
        denoiser.allow()
        assert len(run.read(many)[0]) == 60


def test_clients_take_turns_where_a_forward_holds_one_row(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser, max_batch_tokens=LENGTH) as run:
        _holding(denoiser, run)
        one = run.score(_states(denoiser, 20), client_id="one")
        two = run.score(_states(denoiser, 20, first_seed=20), client_id="two")
        denoiser.allow(11)
        denoiser.wait_held()
        assert len(one.rows) == len(two.rows) == 15
        denoiser.allow()
        assert len(run.read(one)[0]) == len(run.read(two)[0]) == 20


def test_a_client_that_comes_back_does_not_push_the_others_out(
    denoiser: ControlledDenoiser,
) -> None:
    """What it was served before it left counts no more than the least of those at work."""
    with run_engine(denoiser, max_batch_tokens=2 * LENGTH) as run:
        run.read(run.score(_states(denoiser, 1), client_id="early"))
        busy = run.score(_states(denoiser, 200), client_id="busy", window_bytes=1 << 40)
        wait_until(lambda: len(busy.rows) < 150)
        denoiser.hold()
        denoiser.wait_held()
        back = run.score(_states(denoiser, 40), client_id="early")
        num_left = len(busy.rows)
        num_forwards = len(denoiser.batches)
        denoiser.allow(11)
        denoiser.wait_held()
        assert len(denoiser.batches) - num_forwards == 11
        # Each forward holds one row of either.
        assert abs((40 - len(back.rows)) - (num_left - len(busy.rows))) <= 4
        denoiser.allow()
        assert len(run.read(busy)[0]) == 200
        assert len(run.read(back)[0]) == 40


def test_requests_are_refused_while_readers_are_too_far_behind(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser, max_pending_output_bytes=1000) as run:
        # All its rows have ended, but nobody has read what they left.
        unread = run.score(_states(denoiser, 3))
        wait_until(lambda: not unread.rows)
        with pytest.raises(errors.OverloadedError, match="readers are behind") as raised:
            run.score(_states(denoiser, 1))
        assert raised.value.retry_after_s is not None
        run.engine.close(unread)
        assert len(run.read(run.score(_states(denoiser, 1)))[0]) == 1


def test_requests_are_refused_while_the_queue_is_full(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser, max_queue_tokens=5 * LENGTH) as run:
        _holding(denoiser, run)
        waiting = run.score(_states(denoiser, 4))
        with pytest.raises(errors.OverloadedError, match="queue is full") as raised:
            run.score(_states(denoiser, 1))
        assert raised.value.retry_after_s is not None and raised.value.retry_after_s > 0
        denoiser.allow()
        run.read(waiting)
        run.assert_nothing_is_left()
        run.read(run.score(_states(denoiser, 5)))


def test_a_step_makes_no_more_targets_than_all_streams_may_hold(
    denoiser: ControlledDenoiser,
) -> None:
    # 8 masked positions of 300 ids of 4 bytes: three rows are 28,800 bytes.
    targets = pb.TargetSpec(encoding=pb.ENCODING_LOGITS)
    with run_engine(denoiser, max_pending_output_bytes=30_000) as run:
        _holding(denoiser, run)
        many = run.score(_states(denoiser, 7), targets=targets)
        denoiser.allow()
        assert len(run.read(many)[0]) == 7
        assert [len(batch) for batch in denoiser.batches] == [1, 3, 3, 1]
    with run_engine(denoiser, max_pending_output_bytes=1) as run:
        assert len(run.read(run.score(_states(denoiser, 1), targets=targets))[0]) == 1


def test_a_deterministic_engine_runs_one_shape_and_keeps_every_bit(
    denoiser: ControlledDenoiser,
) -> None:
    message = _trajectories(denoiser, 3)
    payloads = []
    with run_engine(denoiser, deterministic=True) as run:
        denoiser.batches.clear()  # those of the tests at the start
        for num_others in (0, 5):
            _holding(denoiser, run)
            others = [run.score(_states(denoiser, 3), client_id=f"{n}") for n in range(num_others)]
            request = run.sample(message)
            denoiser.allow()
            items = []
            while not isinstance(item := run.next_item(request), StreamEnd):
                items.append(item)
            # Rows of a request take turns, so records of different rows may come in any order.
            payloads.append(sorted(getattr(item, "payload", b"") for item in items))
            for other in others:
                run.read(other)
        # No row that nobody asked for; rows are padded to 32, and sizes are powers of two.
        shapes = {tuple(batch.shape) for batch in denoiser.batches}
        assert shapes <= {(size, 32) for size in (1, 2, 4, 8, 16)} and len(shapes) > 1
        counters = run.engine.snapshot()
        assert counters.num_padded_tokens == 32 * counters.num_forward_rows
    assert payloads[0] == payloads[1]


def test_the_load_tells_rows_tokens_backlog_and_health(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        idle = run.engine.load()
        assert idle.healthy and not idle.draining and idle.backlog_s == 0
        run.read(run.score(_states(denoiser, 1)))
        _holding(denoiser, run)
        waiting = run.score(_states(denoiser, 3))
        denoiser.allow(1)
        denoiser.wait_held()
        load = run.engine.load()
        assert load.num_queued_tokens == 3 * LENGTH
        assert load.num_live_rows + load.num_waiting_rows == 3
        assert load.backlog_s > 0
        denoiser.allow()
        run.read(waiting)


def test_an_engine_that_hangs_in_a_forward_is_not_healthy(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser, health_interval_s=0.1) as run:
        request = _holding(denoiser, run)
        wait_until(lambda: not run.engine.load().healthy)
        denoiser.allow()
        run.read(request)
        wait_until(lambda: run.engine.load().healthy)


def test_an_idle_engine_proves_itself_before_it_looks_sick(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser, health_interval_s=1.2) as run:
        num_sick = 0

        def is_proved_again() -> bool:
            nonlocal num_sick
            num_sick += not run.engine.load().healthy
            return denoiser.num_proofs >= 3

        wait_until(is_proved_again)
        assert num_sick == 0
        assert not denoiser.batches


def test_a_long_idle_stretch_of_one_client_does_not_hold_another_up(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser) as run:
        # Nothing moves before step 2000 or so.
        idle = run.sample(
            calls.trajectory_request(
                _states(denoiser, 40),
                sampler=pb.SamplerSpec(algorithm=pb.ALGORITHM_ENTROPY, num_steps=4000),
                client_id="idle",
            )
        )
        other = run.score(_states(denoiser, 1), client_id="other")
        assert len(run.read(other)[0]) == 1
        assert len(idle.rows) == 40
        assert all(row.step < 2000 for row in idle.rows)
        run.engine.close(idle)
        run.assert_nothing_is_left()


def test_who_cannot_be_done_in_time_is_refused_with_a_hint_and_whoever_is_not_is_done(
    denoiser: ControlledDenoiser,
) -> None:
    # A step of one row fills half of the budget: smaller ones tell no speed.
    with run_engine(denoiser, max_batch_tokens=2 * LENGTH) as run:
        # No speed is known yet: admitted, whatever the deadline.
        run.read(run.score(_states(denoiser, 1), remaining_s=30.0))
        held = _holding(denoiser, run)
        patient = run.score(_states(denoiser, 400, first_seed=100), client_id="b")
        with pytest.raises(errors.OverloadedError, match="deadlines would be missed") as refused:
            run.score(_states(denoiser, 400, first_seed=900), client_id="c", remaining_s=1e-4)
        assert refused.value.retry_after_s is not None and refused.value.retry_after_s >= 0.1
        denoiser.allow()
        assert run.read(patient)[2] is None
        run.read(held)
        run.assert_nothing_is_left()


def test_the_end_of_a_refused_request_ends_nothing_else(denoiser: ControlledDenoiser) -> None:
    submitted: list[Request] = []

    class Recording(Engine):
        def submit(self, request: Request) -> None:
            submitted.append(request)
            super().submit(request)

    with run_engine(denoiser, engine_class=Recording, max_queue_tokens=5 * LENGTH) as run:
        held = _holding(denoiser, run)
        with pytest.raises(errors.OverloadedError):
            run.score(_states(denoiser, 6))
        # An engine's process hears of both from the front.
        run.engine.close(submitted[-1])
        denoiser.allow()
        run.read(held)
        assert len(run.read(run.score(_states(denoiser, 1)))[0]) == 1
        assert run.deaths == []
        run.assert_nothing_is_left()
