import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from masked_diffusion import sampling
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import algorithms_for
from protos import codec
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.config import LimitsConfig
from teacher_server.engine.counters import EngineCounters
from teacher_server.engine.model_runner import ModelRunner
from teacher_server.engine.sequence import Capture, Request, Row
from teacher_server.engine.step import DenoisingStep
from teacher_server.engine.stream import OutputStream, TargetsReady, TrajectoryDone
from teacher_server.requests import RequestParser
from tests.sampler_choices import choices
from tests.teacher_server import calls, reference
from tests.teacher_server.calls import int32
from tests.teacher_server.denoisers import ControlledDenoiser

ALGORITHMS = algorithms_for("absorbing")
# Padding and the order of sums move float32 hidden values of order 1 by some units of 2**-23.
ATOL = 1e-5


class _Bench:
    """A step with its denoiser, and requests to run through it: no thread anywhere."""

    def __init__(self, denoiser: Denoiser, loop: asyncio.AbstractEventLoop) -> None:
        self.denoiser = ControlledDenoiser(denoiser)
        self.counters = EngineCounters()
        runner = ModelRunner(self.denoiser, max_head_elements=5000)
        self.step = DenoisingStep(runner, self.counters, revision="revision")
        self.loop = loop
        self.parser = RequestParser(
            denoiser.info, LimitsConfig(), model_dtype="f32", revision="revision"
        )

    def stream(self) -> OutputStream:
        return OutputStream(loop=self.loop, window_bytes=1 << 40, on_room=lambda: None)

    def score(self, states: Sequence[np.ndarray], **fields: object) -> Request:
        message = calls.score_request(states, **fields)  # type: ignore[arg-type]
        return self.parser.score(message, self.stream(), remaining_s=None)

    def sample(self, message: pb.SampleTrajectoriesRequest) -> Request:
        return self.parser.trajectories(message, self.stream(), remaining_s=None)

    def run(self, *requests: Request) -> None:
        """Steps all rows together until none is left."""
        rows = [row for request in requests for row in request.rows]
        while rows:
            over = {id(row) for row in self.step.seek([row for row in rows if not row.is_ready])}
            rows = [row for row in rows if id(row) not in over]
            ready = [row for row in rows if row.is_ready]
            if ready:
                self.step.run(ready)

    def read(self, request: Request) -> tuple[list[codec.StepTargets], list[TrajectoryDone]]:
        self.loop.run_until_complete(asyncio.sleep(0))
        targets: list[codec.StepTargets] = []
        done: list[TrajectoryDone] = []
        assert isinstance(request.stream, OutputStream)
        while (item := request.stream.get_ready()) is not None:
            if isinstance(item, TargetsReady):
                targets.append(codec.decode_targets(item.payload))
            elif isinstance(item, TrajectoryDone):
                done.append(item)
        return targets, done


@pytest.fixture
def bench(tiny_denoiser: Denoiser) -> Iterator[_Bench]:
    loop = asyncio.new_event_loop()
    yield _Bench(tiny_denoiser, loop)
    loop.close()


def _sampler(algorithm: str, **changes: object) -> pb.SamplerSpec:
    fields = {"num_steps": 9, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "alg_temp": 0.3}
    return pb.SamplerSpec(
        algorithm=names.value_of(names.ALGORITHMS, algorithm),
        **(fields | choices(algorithm) | changes),  # type: ignore[arg-type]
    )


def _starts(denoiser: Denoiser) -> list[np.ndarray]:
    sizes = [(12, 7), (20, 19), (5, 1), (17, 11)]
    return [
        calls.make_state(denoiser.info, length=length, num_masked=num_masked, seed=length)
        for length, num_masked in sizes
    ]


def _references(
    bench: _Bench, message: pb.SampleTrajectoriesRequest, starts: Sequence[np.ndarray]
) -> list[reference.Trajectory]:
    request = bench.sample(message)
    assert request.sampler is not None
    return [
        reference.sample_alone(
            bench.denoiser,
            start,
            frozen=row.frozen_L.numpy(),
            config=request.sampler,
            seed=row.seed,
            sequence_id=row.sequence_id,
            capture=request.capture,
        )
        for row, start in zip(request.rows, starts, strict=True)
    ]


def _assert_targets(
    records: Sequence[codec.StepTargets], expected: Sequence[reference.CollectedStep]
) -> None:
    assert [record.step for record in records] == [step.step for step in expected]
    for record, step in zip(records, expected, strict=True):
        assert record.state is not None and record.unmask_steps is not None
        assert record.time == step.time
        assert record.num_forwards == step.num_forwards
        np.testing.assert_array_equal(record.state, step.state)
        np.testing.assert_array_equal(record.unmask_steps, step.unmask_steps)
        np.testing.assert_array_equal(record.positions, step.positions)
        assert isinstance(record.distribution, codec.Hidden)
        values = record.distribution.values.to_float32()
        np.testing.assert_allclose(values, step.hidden_MD, atol=ATOL)


def _assert_done(done: TrajectoryDone, expected: reference.Trajectory) -> None:
    np.testing.assert_array_equal(int32(done.token_ids), expected.state)
    np.testing.assert_array_equal(int32(done.unmask_steps), expected.unmask_steps)
    assert done.num_forwards == expected.num_forwards
    assert done.num_steps == expected.num_steps
    assert done.num_collected_steps == len(expected.collected)
    assert done.revision == "revision"


CAPTURES = {
    "none": pb.Capture(),
    "every step": pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1),
    "every third": pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=3),
    "listed": pb.Capture(kind=pb.CAPTURE_KIND_STEPS, steps=[0, 1, 5, 8]),
}


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_of_a_batch_come_to_what_each_comes_to_alone(
    algorithm: str, capture: str, bench: _Bench
) -> None:
    starts = _starts(bench.denoiser)
    message = calls.trajectory_request(
        starts, sampler=_sampler(algorithm), capture=CAPTURES[capture]
    )
    expected = _references(bench, message, starts)
    request = bench.sample(message)
    bench.run(request)
    targets, done = bench.read(request)
    for item in done:
        _assert_done(item, expected[item.sequence_id])
    assert len(done) == len(starts)
    for sequence_id, trajectory in enumerate(expected):
        own = [record for record in targets if record.sequence_id == sequence_id]
        _assert_targets(own, trajectory.collected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trajectory_is_that_of_the_in_process_loop(algorithm: str, bench: _Bench) -> None:
    starts = _starts(bench.denoiser)
    request = bench.sample(calls.trajectory_request(starts, sampler=_sampler(algorithm)))
    assert request.sampler is not None
    lengths_B = torch.tensor([len(start) for start in starts])
    x_BL = torch.nn.utils.rnn.pad_sequence([row.x_L for row in request.rows], batch_first=True)
    result = sampling.sample(
        bench.denoiser,
        x_BL,
        frozen_BL=x_BL != bench.denoiser.info.mask_token_id,
        lengths_B=lengths_B,
        config=request.sampler,
        seeds=[row.seed for row in request.rows],
        sequence_ids=[row.sequence_id for row in request.rows],
    )
    bench.run(request)
    _, done = bench.read(request)
    for item in done:
        length = len(starts[item.sequence_id])
        np.testing.assert_array_equal(int32(item.token_ids), result.x[item.sequence_id, :length])
        np.testing.assert_array_equal(
            int32(item.unmask_steps), result.unmask_steps_BL[item.sequence_id, :length]
        )
        assert item.num_forwards == result.num_forwards_B[item.sequence_id]


def test_kinds_algorithms_and_step_counts_share_forwards_without_mixing_up(bench: _Bench) -> None:
    starts = _starts(bench.denoiser)
    messages = [
        calls.trajectory_request(
            starts,
            sampler=_sampler(algorithm, num_steps=num_steps),
            capture=CAPTURES["every step"],
            client_id=algorithm,
        )
        for algorithm in ALGORITHMS
        for num_steps in (1, 4, 9)
    ]
    expected = [_references(bench, message, starts) for message in messages]
    num_alone = len(bench.denoiser.batches)
    requests = [bench.sample(message) for message in messages]
    scores = bench.score(starts, client_id="scores")
    bench.run(*requests, scores)
    for request, trajectories in zip(requests, expected, strict=True):
        targets, done = bench.read(request)
        for item in done:
            _assert_done(item, trajectories[item.sequence_id])
        for sequence_id, trajectory in enumerate(trajectories):
            own = [record for record in targets if record.sequence_id == sequence_id]
            _assert_targets(own, trajectory.collected)
    targets, _ = bench.read(scores)
    assert sorted(record.sequence_id for record in targets) == [0, 1, 2, 3]
    num_forwards = len(bench.denoiser.batches) - num_alone
    assert bench.counters.num_forwards == num_forwards < num_alone / 4
    assert bench.counters.num_shared_forwards > 1
    assert bench.counters.num_mixed_forwards == 1  # a score has one forward


def test_idle_steps_cost_no_forward_and_are_not_collected_twice(bench: _Bench) -> None:
    start = calls.make_state(bench.denoiser.info, length=9, num_masked=5)
    sampler = _sampler("maskgit_plus", num_steps=40)
    request = bench.sample(calls.trajectory_request([start], sampler=sampler))
    bench.run(request)
    num_moves = len(bench.denoiser.batches)
    assert num_moves <= 5
    capture = CAPTURES["every step"]
    request = bench.sample(calls.trajectory_request([start], sampler=sampler, capture=capture))
    bench.run(request)
    targets, (done,) = bench.read(request)
    # The state at step 0 is collected, though nothing moves there; then each new state once.
    assert targets[0].step == 0
    assert len({record.state_digest for record in targets}) == len(targets) == num_moves
    assert len(bench.denoiser.batches) - num_moves == num_moves + 1
    assert done.num_forwards == num_moves + 1
    assert done.num_steps == 40


def test_a_long_idle_stretch_is_passed_a_few_steps_at_a_time(bench: _Bench) -> None:
    start = calls.make_state(bench.denoiser.info, length=9, num_masked=2)
    request = bench.sample(
        calls.trajectory_request([start], sampler=_sampler("entropy", num_steps=1000))
    )
    (row,) = request.rows
    steps = [row.step]
    while not row.is_ready:
        assert not bench.step.seek([row])
        steps.append(row.step)
    assert 0 < np.diff(steps).max() <= 8
    assert row.step > 400
    assert not bench.denoiser.batches


def test_a_trajectory_without_masks_ends_before_its_first_forward(bench: _Bench) -> None:
    start = calls.make_state(bench.denoiser.info, length=9, num_masked=0)
    request = bench.sample(
        calls.trajectory_request([start], sampler=_sampler("p2"), capture=CAPTURES["every step"])
    )
    assert bench.step.seek(request.rows) == request.rows
    targets, (done,) = bench.read(request)
    assert not targets
    np.testing.assert_array_equal(int32(done.token_ids), start)
    assert (done.num_forwards, done.num_steps) == (0, 0)


@pytest.mark.parametrize("encoding", [pb.ENCODING_HIDDEN, pb.ENCODING_TOP_K, pb.ENCODING_LOGITS])
def test_a_state_without_masks_is_answered_without_a_forward(
    encoding: pb.Encoding, bench: _Bench
) -> None:
    state = calls.make_state(bench.denoiser.info, length=9, num_masked=0)
    request = bench.score([state], targets=pb.TargetSpec(encoding=encoding, top_k=4))
    assert bench.step.seek(request.rows) == request.rows
    (record,), done = bench.read(request)
    assert not done and not bench.denoiser.batches
    assert (len(record.positions), record.num_forwards) == (0, 0)
    assert record.state_digest == codec.state_digest(state)


def test_a_frozen_mask_stays_and_carries_no_targets(bench: _Bench) -> None:
    start = calls.make_state(bench.denoiser.info, length=9, num_masked=6)
    masked = np.flatnonzero(start == bench.denoiser.info.mask_token_id)
    frozen = start != bench.denoiser.info.mask_token_id
    frozen[masked[:3]] = True
    message = calls.trajectory_request(
        [start], sampler=_sampler("p2"), capture=CAPTURES["every step"]
    )
    message.frozen = frozen.astype(np.uint8).tobytes()
    request = bench.sample(message)
    bench.run(request)
    targets, (done,) = bench.read(request)
    assert (int32(done.token_ids)[masked[:3]] == bench.denoiser.info.mask_token_id).all()
    assert (int32(done.token_ids)[masked[3:]] != bench.denoiser.info.mask_token_id).all()
    np.testing.assert_array_equal(targets[0].positions, masked[3:])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("capture", "from_beginning"),
    [("every step", False), ("every third", False), ("listed", True)],
)
def test_a_resumed_trajectory_gives_exactly_what_is_left(
    algorithm: str, capture: str, from_beginning: bool, bench: _Bench
) -> None:
    start = calls.make_state(bench.denoiser.info, length=14, num_masked=6)
    sampler = _sampler(algorithm, num_steps=12)
    message = calls.trajectory_request([start], sampler=sampler, capture=CAPTURES[capture])
    request = bench.sample(message)
    bench.run(request)
    whole, (end,) = bench.read(request)
    frozen = start != bench.denoiser.info.mask_token_id
    for index, last in enumerate(whole):
        again = bench.sample(message)
        row = again.rows[0]
        row.last_collected_step = last.step
        if not from_beginning:
            assert last.state is not None and last.unmask_steps is not None
            row.step, row.num_forwards = last.step, last.num_forwards - 1
            row.x_L = torch.from_numpy(last.state.astype(np.int64))
            row.frozen_L = torch.from_numpy(frozen)
            row.unmask_steps_L = last.unmask_steps.copy()
        bench.run(again)
        rest, (done,) = bench.read(again)
        assert [record.step for record in rest] == [record.step for record in whole[index + 1 :]]
        for record, expected in zip(rest, whole[index + 1 :], strict=True):
            assert record.state_digest == expected.state_digest
            assert record.num_forwards == expected.num_forwards
            np.testing.assert_array_equal(record.unmask_steps, expected.unmask_steps)
        assert (done.token_ids, done.unmask_steps) == (end.token_ids, end.unmask_steps)
        assert (done.num_forwards, done.num_steps) == (end.num_forwards, end.num_steps)
        assert done.num_collected_steps == len(rest)


def test_a_score_carries_the_masked_positions_and_the_share_of_masks(bench: _Bench) -> None:
    states = _starts(bench.denoiser)
    request = bench.score(states)
    bench.run(request)
    targets, done = bench.read(request)
    assert not done
    for record in targets:
        state = states[record.sequence_id]
        masked = state == bench.denoiser.info.mask_token_id
        assert record.state is None and record.unmask_steps is None
        assert record.state_digest == codec.state_digest(state)
        assert (record.step, record.num_forwards) == (0, 1)
        assert record.time == pytest.approx(masked.mean())
        np.testing.assert_array_equal(record.positions, np.flatnonzero(masked))
        assert isinstance(record.distribution, codec.Hidden)
        np.testing.assert_allclose(
            record.distribution.values.to_float32(),
            calls.hidden_of(bench.denoiser, state)[masked],
            atol=ATOL,
        )


def test_counters_tell_rows_tokens_padding_positions_and_bytes(bench: _Bench) -> None:
    states = _starts(bench.denoiser)
    request = bench.score(states)
    bench.run(request)
    counters, lengths = bench.counters, [len(state) for state in states]
    assert (counters.num_forwards, counters.num_forward_rows) == (1, len(states))
    assert counters.num_forward_tokens == sum(lengths)
    assert counters.num_padded_tokens == sum(lengths)  # packed
    num_masked = sum(int((state == bench.denoiser.info.mask_token_id).sum()) for state in states)
    assert counters.num_target_positions == request.num_target_positions == num_masked
    assert counters.num_payload_bytes == request.stream.pending_bytes
    assert request.num_forwards == len(states)


def test_a_capture_of_no_step_collects_nothing(bench: _Bench) -> None:
    request = bench.sample(
        calls.trajectory_request(_starts(bench.denoiser), sampler=_sampler("origin"))
    )
    assert request.capture == Capture()
    bench.run(request)
    targets, done = bench.read(request)
    assert not targets
    assert {item.num_collected_steps for item in done} == {0}


def test_steps_of_rows_are_independent(bench: _Bench) -> None:
    """A row far ahead and a row at its beginning sample in one call, each at its own step."""
    starts = _starts(bench.denoiser)
    message = calls.trajectory_request(
        starts, sampler=_sampler("p2"), capture=CAPTURES["every step"]
    )
    expected = _references(bench, message, starts)
    request = bench.sample(message)
    late: list[Row] = request.rows[2:]
    early: list[Row] = request.rows[:2]
    for _ in range(4):
        bench.step.seek(early)
        bench.step.run(early)
    rows = [*early, *late]
    while rows:
        over = {id(row) for row in bench.step.seek([row for row in rows if not row.is_ready])}
        rows = [row for row in rows if id(row) not in over]
        if rows:
            bench.step.run(rows)
    _, done = bench.read(request)
    for item in done:
        _assert_done(item, expected[item.sequence_id])
