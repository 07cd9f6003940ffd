"""Rows of the same content: what they cost, what each gets, and how they part."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masked_diffusion.families import Denoiser
from protos import codec, errors
from protos import teacher_pb2 as pb
from teacher_server.engine.sequence import Request
from teacher_server.engine.stream import StreamEnd, TargetsReady
from tests.teacher_server import calls
from tests.teacher_server.calls import wait_until
from tests.teacher_server.denoisers import ControlledDenoiser
from tests.teacher_server.engines import EngineRun, run_engine

LENGTH = 16
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)


@pytest.fixture
def denoiser(tiny_denoiser: Denoiser) -> Iterator[ControlledDenoiser]:
    controlled = ControlledDenoiser(tiny_denoiser)
    yield controlled
    controlled.allow()


def _states(denoiser: Denoiser, count: int = 1) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=LENGTH, num_masked=8, seed=seed)
        for seed in range(count)
    ]


def _trajectories(
    denoiser: Denoiser, count: int = 1, **fields: Any
) -> pb.SampleTrajectoriesRequest:
    sampler = pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=8, temperature=1.0)
    return calls.trajectory_request(
        _states(denoiser, count), **{"sampler": sampler, "capture": EVERY_STEP, **fields}
    )


def _hold(denoiser: ControlledDenoiser, run: EngineRun) -> Request:
    denoiser.hold()
    other = calls.make_state(denoiser.info, length=7, num_masked=3, seed=99)
    request = run.score([other], client_id="holder")
    denoiser.wait_held()
    return request


def _payloads(run: EngineRun, request: Request) -> list[bytes]:
    """All that a request was sent, in order, but for its end."""
    found = []
    while not isinstance(item := run.next_item(request), StreamEnd):
        found.append(item.payload if isinstance(item, TargetsReady) else repr(item).encode())
    assert item.error is None
    return found


def _num_rows_run(denoiser: ControlledDenoiser) -> int:
    return sum(int((batch[:, 0] != 0).sum()) for batch in denoiser.batches)


def test_what_four_ranks_ask_alike_is_run_once(denoiser: ControlledDenoiser) -> None:
    with run_engine(denoiser) as run:
        alone = _payloads(run, run.sample(_trajectories(denoiser, 3)))
        num_alone = _num_rows_run(denoiser)
        holder = _hold(denoiser, run)
        ranks = [
            run.sample(_trajectories(denoiser, 3, client_id=f"rank{rank}")) for rank in range(4)
        ]
        denoiser.allow()
        for rank in ranks:
            # Rows of a request take turns, so records of different rows may come in any order.
            got = _payloads(run, rank)
            assert len(got) == len(alone)
            decoded = [codec.decode_targets(part) for part in sorted(got) if part[:4] != b"Traj"]
            assert {record.sequence_id for record in decoded} == {0, 1, 2}
        run.read(holder)
        assert _num_rows_run(denoiser) == 2 * num_alone + 1
        assert run.engine.snapshot().num_joined_rows == 9
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 3 + 1 + 12}


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 12},
        {"capture": pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=2)},
        {"targets": pb.TargetSpec(encoding=pb.ENCODING_LOGITS)},
        {"sampler": pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=9, temperature=1.0)},
    ],
)
def test_what_differs_in_anything_is_run_apart(
    other: dict[str, Any], denoiser: ControlledDenoiser
) -> None:
    with run_engine(denoiser) as run:
        _hold(denoiser, run)
        requests = [
            run.sample(_trajectories(denoiser)),
            run.sample(_trajectories(denoiser, **other)),
        ]
        denoiser.allow()
        for request in requests:
            assert run.read(request)[2] is None
        assert run.engine.snapshot().num_joined_rows == 0


@pytest.mark.parametrize("num_steps_before", [0, 3])
@pytest.mark.parametrize("who", ["leader", "twin"])
@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_the_end_of_one_twin_does_not_touch_the_other(
    how: str, who: str, num_steps_before: int, denoiser: ControlledDenoiser
) -> None:
    with run_engine(denoiser) as run:
        expected = _payloads(run, run.sample(_trajectories(denoiser)))
        holder = _hold(denoiser, run)
        leader, twin = (run.sample(_trajectories(denoiser)) for _ in range(2))
        leaving, staying = (leader, twin) if who == "leader" else (twin, leader)
        denoiser.allow(1 + num_steps_before)
        denoiser.wait_held()
        if how == "cancelled":
            run.engine.close(leaving)
        else:
            leaving.deadline_s = 0.0
        denoiser.allow()
        assert _payloads(run, staying) == expected
        error = run.read(leaving)[2]
        assert isinstance(
            error, errors.CancelledError if how == "cancelled" else errors.DeadlineError
        )
        run.read(holder)
        run.assert_nothing_is_left()
        assert run.outcomes() == {"done": 3, how: 1}
        assert run.engine.snapshot().num_joined_rows == 1


@pytest.mark.parametrize("slow", ["leader", "twin"])
def test_a_slow_reader_parts_from_its_twin_and_gets_the_same(
    slow: str, denoiser: ControlledDenoiser
) -> None:
    with run_engine(denoiser) as run:
        expected = _payloads(run, run.sample(_trajectories(denoiser)))
        _hold(denoiser, run)
        windows = {"leader": 1 << 40, "twin": 1 << 40, slow: 1}
        requests = {
            name: run.sample(_trajectories(denoiser), window_bytes=windows[name])
            for name in ("leader", "twin")
        }
        denoiser.allow()
        fast = next(requests[name] for name in requests if name != slow)
        assert _payloads(run, fast) == expected
        wait_until(lambda: not requests[slow].stream.has_room)
        assert requests[slow].rows[0].leader is None
        assert _payloads(run, requests[slow]) == expected
        run.assert_nothing_is_left()


def test_one_that_comes_after_the_first_targets_were_sent_runs_by_itself(
    denoiser: ControlledDenoiser,
) -> None:
    with run_engine(denoiser) as run:
        expected = _payloads(run, run.sample(_trajectories(denoiser)))
        _hold(denoiser, run)
        first = run.sample(_trajectories(denoiser))
        denoiser.allow(3)
        denoiser.wait_held()
        late = run.sample(_trajectories(denoiser))
        denoiser.allow()
        assert _payloads(run, late) == _payloads(run, first) == expected
        assert run.engine.snapshot().num_joined_rows == 0


def test_twins_fail_together(denoiser: ControlledDenoiser) -> None:
    denoiser.poison_id = 7
    poisoned = [calls.filled_state(denoiser.info, 7, length=LENGTH)]
    with run_engine(denoiser) as run:
        _hold(denoiser, run)
        twins = [run.score(poisoned, client_id=name) for name in ("one", "two")]
        denoiser.allow()
        for twin in twins:
            assert isinstance(run.read(twin)[2], errors.EngineError)
        run.assert_nothing_is_left()
        assert run.outcomes() == {"failed": 2, "done": 1}


@settings(max_examples=15, deadline=None)
@given(
    asks=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=8),
    num_steps_before=st.integers(0, 4),
)
def test_every_admitted_row_ends_once_whoever_leaves(
    asks: Sequence[tuple[int, bool]], num_steps_before: int, tiny_denoiser: Denoiser
) -> None:
    denoiser = ControlledDenoiser(tiny_denoiser)
    with run_engine(denoiser) as run:
        _hold(denoiser, run)
        requests = [
            (run.sample(_trajectories(denoiser, 2, seed=seed)), leaves) for seed, leaves in asks
        ]
        denoiser.allow(1 + num_steps_before)
        denoiser.wait_held()
        for request, leaves in requests:
            if leaves:
                run.engine.close(request)
        denoiser.allow()
        for request, leaves in requests:
            _, done, error = run.read(request)
            assert isinstance(error, errors.CancelledError) if leaves else len(done) == 2
        run.assert_nothing_is_left()
        num_left = sum(leaves for _, leaves in asks)
        counted = {"done": 1 + 2 * (len(asks) - num_left), "cancelled": 2 * num_left}
        assert run.outcomes() == {name: count for name, count in counted.items() if count}
