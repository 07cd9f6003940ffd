import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from masked_diffusion import checkpoints, sampling
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig, algorithms_for
from protos import codec, parts
from protos import teacher_pb2 as pb
from student_trainer import wire
from student_trainer.client import TeacherClient
from teacher_server import names
from teacher_server.engine.sequence import Outcome
from tests import servers
from tests.sampler_choices import choices
from tests.teacher_server import calls
from tests.teacher_server.calls import collect, connect, int32, refusal, wait_until
from tests.teacher_server.denoisers import ControlledDenoiser

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

ALGORITHMS = algorithms_for("absorbing")
SERVICE = "teacher.v1.TeacherService"
# Padding and the order of sums move float32 values of order 1 by some units of 2**-23.
ATOL = 1e-5
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)
HIDDEN = pb.TargetSpec(encoding=pb.ENCODING_HIDDEN)
LOGITS = pb.TargetSpec(encoding=pb.ENCODING_LOGITS)
TOP_K = pb.TargetSpec(
    encoding=pb.ENCODING_TOP_K, top_k=5, dtype=pb.VALUE_DTYPE_F32, temperatures=[1.0, 2.0]
)


@pytest.fixture(scope="module")
def shared(tiny_denoiser: Denoiser) -> Iterator[servers.RunningServer]:
    """One server for tests that leave nothing behind."""
    with servers.serve(tiny_denoiser) as running:
        yield running


@pytest.fixture
def denoiser(tiny_denoiser: Denoiser) -> Iterator[ControlledDenoiser]:
    controlled = ControlledDenoiser(tiny_denoiser)
    yield controlled
    controlled.allow()


def _states(denoiser: Denoiser, count: int, *, length: int = 16) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=length, num_masked=length // 2, seed=seed)
        for seed in range(count)
    ]


def _ragged(denoiser: Denoiser) -> list[np.ndarray]:
    sizes = [(12, 7), (40, 31), (5, 1), (17, 11), (9, 0)]
    return [
        calls.make_state(denoiser.info, length=length, num_masked=num_masked, seed=length)
        for length, num_masked in sizes
    ]


def _sampler(algorithm: str, **changes: object) -> pb.SamplerSpec:
    fields = {"num_steps": 7, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "alg_temp": 0.3}
    return pb.SamplerSpec(
        algorithm=names.value_of(names.ALGORITHMS, algorithm),
        **(fields | choices(algorithm) | changes),  # type: ignore[arg-type]
    )


def _log_probs(denoiser: Denoiser, hidden: np.ndarray) -> np.ndarray:
    """[..., V] float64 in nats, -inf at the mask id."""
    with torch.no_grad():
        logits = denoiser.logits(torch.from_numpy(hidden.copy())).double()
    logits[..., denoiser.info.mask_token_id] = -torch.inf
    return np.asarray(torch.log_softmax(logits, -1).numpy())


def _assert_distribution(
    record: codec.StepTargets, denoiser: Denoiser, hidden_MD: np.ndarray
) -> None:
    """The record holds what the denoiser itself says at these hidden states."""
    distribution = record.distribution
    if isinstance(distribution, codec.Hidden):
        np.testing.assert_allclose(distribution.values.to_float32(), hidden_MD, atol=ATOL)
        return
    exact_MV = _log_probs(denoiser, hidden_MD)
    if isinstance(distribution, codec.Logits):
        # Logits are sums of 32 products, so they carry a few times the error of hidden states.
        np.testing.assert_allclose(distribution.values.to_float32(), exact_MV, atol=1e-4)
        return
    for row in range(len(hidden_MD)):
        kept = slice(distribution.row_offsets[row], distribution.row_offsets[row + 1])
        ids = distribution.token_ids[kept]
        np.testing.assert_array_equal(ids, np.sort(np.argsort(-exact_MV[row])[: len(ids)]))
        log_probs = distribution.log_probs.to_float32()[kept]
        np.testing.assert_allclose(log_probs, exact_MV[row, ids], atol=1e-4)


def _assert_same_distribution(left: codec.Distribution, right: codec.Distribution) -> None:
    assert type(left) is type(right)
    if isinstance(left, codec.TopK) and isinstance(right, codec.TopK):
        np.testing.assert_array_equal(left.row_offsets, right.row_offsets)
        np.testing.assert_array_equal(left.token_ids, right.token_ids)
        for name in ("log_normalizers", "tail_log_masses"):
            np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=ATOL)
        left_values, right_values = left.log_probs, right.log_probs
    else:
        assert not isinstance(left, codec.TopK) and not isinstance(right, codec.TopK)
        left_values, right_values = left.values, right.values
    np.testing.assert_allclose(left_values.to_float32(), right_values.to_float32(), atol=ATOL)


# What is served.


def test_the_description_is_that_of_the_denoiser(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    with connect(shared.address) as stub:
        told = stub.DescribeTeacher(pb.DescribeTeacherRequest())
    info = tiny_denoiser.info
    for name in (
        "name",
        "family",
        "tokenizer_fingerprint",
        "vocab_size",
        "padded_vocab_size",
        "mask_token_id",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "max_length",
        "hidden_size",
        "num_invalid_leading_positions",
    ):
        assert getattr(told, name) == getattr(info, name), name
    assert told.padded_vocab_size == told.vocab_size + 20
    assert told.num_parameters == info.num_parameters
    assert told.revision == checkpoints.weights_digest(tiny_denoiser)
    assert told.head_digest == checkpoints.head_digest(tiny_denoiser)
    assert told.attention == pb.ATTENTION_FULL
    assert told.dtype == pb.VALUE_DTYPE_F32
    assert told.payload_version == codec.PAYLOAD_VERSION
    assert told.limits.max_sequences == 1024
    assert told.limits.max_top_k == 4096
    assert told.limits.stream_window_bytes > 0


def test_the_description_lists_what_is_built_and_nothing_else(
    shared: servers.RunningServer,
) -> None:
    with connect(shared.address) as stub:
        told = stub.DescribeTeacher(pb.DescribeTeacherRequest())
    assert set(told.encodings) == {pb.ENCODING_HIDDEN, pb.ENCODING_TOP_K, pb.ENCODING_LOGITS}
    assert {pb.Algorithm.Name(value) for value in told.algorithms} == {
        f"ALGORITHM_{name.upper()}" for name in ALGORITHMS
    }
    assert set(told.captures) == {
        pb.CAPTURE_KIND_NONE,
        pb.CAPTURE_KIND_EVERY_N,
        pb.CAPTURE_KIND_STEPS,
    }


def test_the_client_reads_the_description(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    with TeacherClient(shared.address) as client:
        told = client.describe()
    assert told.algorithms == ALGORITHMS
    assert told.encodings == ("hidden", "top_k", "logits")
    assert told.mask_token_id == tiny_denoiser.info.mask_token_id


def test_the_head_in_chunks_makes_the_denoisers_own_logits(
    shared: servers.RunningServer, tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a tiny head takes many messages.
    monkeypatch.setattr(parts, "MESSAGE_BYTES", 1000)
    with connect(shared.address) as stub:
        messages = list(stub.GetHead(pb.GetHeadRequest()))
    assert len(messages) > 10
    data = b"".join(message.data for message in messages)
    offsets = np.cumsum([0] + [len(message.data) for message in messages])
    assert [message.offset for message in messages] == offsets[:-1].tolist()
    assert {message.payload_bytes for message in messages} == {len(data)}
    assert all(message.crc32c == parts.crc32c(message.data) for message in messages)
    spec, info = messages[0].head, tiny_denoiser.info
    weight_VD = np.frombuffer(data, "<f4").reshape(spec.vocab_size, spec.hidden_size)
    assert weight_VD.shape == (info.vocab_size, info.hidden_size)
    assert (spec.logit_scale, spec.logit_soft_cap, spec.has_bias) == (1.0, 0.0, False)
    hidden_LD = calls.hidden_of(tiny_denoiser, _states(tiny_denoiser, 1)[0])
    logits_LV = hidden_LD.astype(np.float64) @ weight_VD.T.astype(np.float64)
    with torch.no_grad():
        own_LV = tiny_denoiser.logits(torch.from_numpy(hidden_LD)).numpy()
    ordinary = np.arange(info.vocab_size) != info.mask_token_id
    np.testing.assert_allclose(logits_LV[:, ordinary], own_LV[:, ordinary], atol=ATOL)


def test_the_client_fetches_the_head(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    with TeacherClient(shared.address) as client:
        head = client.head()
    own_VD = tiny_denoiser.head_weight[: tiny_denoiser.info.vocab_size].detach().numpy()
    np.testing.assert_array_equal(head.weight_VD, own_VD)
    assert head.digest == checkpoints.head_digest(tiny_denoiser)


def test_another_head_than_expected_is_refused(shared: servers.RunningServer) -> None:
    with connect(shared.address) as stub:
        told = refusal(lambda: list(stub.GetHead(pb.GetHeadRequest(expected_digest="abc"))))
    assert told.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (told.reason, told.field) == ("HEAD_MISMATCH", "expected_digest")
    assert "abc" in told.message


def test_swapping_weights_is_not_offered(shared: servers.RunningServer) -> None:
    with connect(shared.address) as stub:
        told = refusal(lambda: stub.SwapWeights(iter([pb.SwapWeightsRequest()])))
    assert told.code is grpc.StatusCode.UNIMPLEMENTED
    assert told.reason == "NOT_OFFERED"


def test_reflection_lists_the_service_and_its_methods(shared: servers.RunningServer) -> None:
    with grpc.insecure_channel(shared.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol(SERVICE)
    assert isinstance(file, descriptor_pb2.FileDescriptorProto)
    assert {method.name for method in file.service[0].method} == {
        "DescribeTeacher",
        "ScoreStates",
        "SampleTrajectories",
        "GetHead",
        "SwapWeights",
        "GetLoad",
    }


# Scores.


@pytest.mark.parametrize("targets", [HIDDEN, LOGITS, TOP_K], ids=["hidden", "logits", "top_k"])
def test_scores_are_the_denoisers_own_at_masked_positions(
    targets: pb.TargetSpec, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    states = _ragged(tiny_denoiser)
    with connect(shared.address) as stub:
        answers = collect(stub.ScoreStates(calls.score_request(states, targets=targets)))
    assert sorted(record.sequence_id for record in answers.targets) == list(range(len(states)))
    for record in answers.targets:
        state = states[record.sequence_id]
        masked = np.flatnonzero(state == tiny_denoiser.info.mask_token_id)
        np.testing.assert_array_equal(record.positions, masked)
        assert record.revision == checkpoints.weights_digest(tiny_denoiser)
        assert record.tokenizer_fingerprint == tiny_denoiser.info.tokenizer_fingerprint
        assert record.state_digest == codec.state_digest(state)
        _assert_distribution(record, tiny_denoiser, calls.hidden_of(tiny_denoiser, state)[masked])


@pytest.mark.parametrize("targets", [HIDDEN, LOGITS, TOP_K], ids=["hidden", "logits", "top_k"])
def test_scores_are_the_denoisers_own_at_chosen_positions(
    targets: pb.TargetSpec, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    states = _ragged(tiny_denoiser)
    chosen = [np.array(rows, dtype="<i4") for rows in ([1, 2, 11], [39], [], range(1, 17), [8])]
    request = calls.score_request(states, targets=targets)
    request.positions.positions = b"".join(rows.tobytes() for rows in chosen)
    request.positions.counts.extend(len(rows) for rows in chosen)
    with connect(shared.address) as stub:
        answers = collect(stub.ScoreStates(request))
    for record in answers.targets:
        rows = chosen[record.sequence_id]
        np.testing.assert_array_equal(record.positions, rows)
        hidden_LD = calls.hidden_of(tiny_denoiser, states[record.sequence_id])
        _assert_distribution(record, tiny_denoiser, hidden_LD[rows])


def test_the_client_scores_states_and_attaches_them(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    states = _ragged(tiny_denoiser)
    ids = [10, -5, 2**62, 0, 7]
    with TeacherClient(shared.address) as client:
        records = {
            record.sequence_id: record
            for record in client.score(states, sequence_ids=ids, targets=wire.TargetSpec())
        }
        assert client.num_retries == 0
    for sequence_id, state in zip(ids, states, strict=True):
        np.testing.assert_array_equal(records[sequence_id].state, state)


@pytest.mark.parametrize("dtype", [pb.VALUE_DTYPE_F16, pb.VALUE_DTYPE_BF16])
def test_hidden_states_come_in_the_dtype_asked_for(
    dtype: pb.ValueDtype, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    (state,) = _states(tiny_denoiser, 1)
    targets = pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=dtype)
    with connect(shared.address) as stub:
        (record,) = collect(stub.ScoreStates(calls.score_request([state], targets=targets))).targets
    assert isinstance(record.distribution, codec.Hidden)
    exact = calls.hidden_of(tiny_denoiser, state)[record.positions]
    # The coarser of the two keeps 8 bits: relative error 2**-8 at most.
    np.testing.assert_allclose(record.distribution.values.to_float32(), exact, rtol=2**-8)


def test_a_state_without_masks_has_an_empty_record(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    state = calls.make_state(tiny_denoiser.info, length=6, num_masked=0)
    for targets in (HIDDEN, LOGITS, TOP_K):
        with connect(shared.address) as stub:
            request = calls.score_request([state], targets=targets)
            (record,) = collect(stub.ScoreStates(request)).targets
        assert len(record.positions) == 0


def test_many_records_travel_in_messages_of_at_most_one_mebibyte(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    info = tiny_denoiser.info
    length = info.max_length
    states = [
        calls.make_state(info, length=length, num_masked=length - 1, seed=seed)
        for seed in range(12)
    ]
    with connect(shared.address) as stub:
        messages = list(stub.ScoreStates(calls.score_request(states, targets=LOGITS)))
    sizes = [sum(len(part.data) for part in message.parts) for message in messages]
    assert sum(sizes) > 3 * 2**20
    assert max(sizes) <= parts.MESSAGE_BYTES
    assert len(collect(messages).targets) == len(states)


@pytest.mark.parametrize("kind", ["score", "trajectory"])
def test_a_request_without_sequences_answers_an_empty_stream(
    kind: str, shared: servers.RunningServer
) -> None:
    with connect(shared.address) as stub:
        if kind == "score":
            assert list(stub.ScoreStates(calls.score_request([]))) == []
        else:
            request = calls.trajectory_request([], sampler=_sampler("origin"))
            assert list(stub.SampleTrajectories(request)) == []


# Trajectories.


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trajectories_are_those_of_the_in_process_loop(
    algorithm: str, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    starts = _ragged(tiny_denoiser)
    request = calls.trajectory_request(starts, sampler=_sampler(algorithm))
    with connect(shared.address) as stub:
        answers = collect(stub.SampleTrajectories(request))
    lengths_B = torch.tensor([len(start) for start in starts])
    x_BL = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(start).long() for start in starts], batch_first=True
    )
    result = sampling.sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=x_BL != tiny_denoiser.info.mask_token_id,
        lengths_B=lengths_B,
        config=SamplerConfig(
            algorithm=algorithm,
            num_steps=7,
            temperature=0.8,
            top_k=40,
            top_p=0.9,
            alg_temp=0.3,
            **choices(algorithm),  # type: ignore[arg-type]
        ),
        seeds=list(request.seeds),
        sequence_ids=list(range(len(starts))),
    )
    assert not answers.targets
    for b, start in enumerate(starts):
        record = answers.trajectories[b]
        np.testing.assert_array_equal(int32(record.token_ids), result.x[b, : len(start)])
        np.testing.assert_array_equal(
            int32(record.unmask_steps), result.unmask_steps_BL[b, : len(start)]
        )
        assert record.num_forwards == result.num_forwards_B[b]
        assert record.num_collected_steps == 0
        assert record.revision == checkpoints.weights_digest(tiny_denoiser)


CAPTURES = {
    "every step": (EVERY_STEP, {0, 1, 2, 3, 4, 5, 6}),
    "every third": (pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=3), {0, 3, 6}),
    "listed": (pb.Capture(kind=pb.CAPTURE_KIND_STEPS, steps=[5, 1, 1]), {1, 5}),
    "none": (pb.Capture(kind=pb.CAPTURE_KIND_NONE), set()),
}


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("algorithm", ["maskgit_plus", "p2"])
def test_captured_steps_carry_the_state_before_the_update_and_its_targets(
    algorithm: str, capture: str, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    message, covered = CAPTURES[capture]
    # More masks than steps: no step is idle, so every captured one is sent.
    start = calls.make_state(tiny_denoiser.info, length=60, num_masked=50)
    sampler = _sampler(algorithm, alg_temp=0.0)
    request = calls.trajectory_request([start], sampler=sampler, capture=message, targets=LOGITS)
    with connect(shared.address) as stub:
        answers = collect(stub.SampleTrajectories(request))
    assert {record.step for record in answers.targets} == covered
    assert [record.step for record in answers.targets] == sorted(covered)
    assert answers.trajectories[0].num_collected_steps == len(covered)
    final = int32(answers.trajectories[0].token_ids)
    mask_token_id = tiny_denoiser.info.mask_token_id
    given = start != mask_token_id
    for record in answers.targets:
        assert record.state is not None and record.unmask_steps is not None
        masked = record.state == mask_token_id
        assert record.step > 0 or (record.state == start).all()
        assert (record.state[given] == start[given]).all()
        np.testing.assert_array_equal(record.positions, np.flatnonzero(masked))
        assert (record.unmask_steps[masked | given] == -1).all()
        assert (record.unmask_steps[~masked & ~given] < record.step).all()
        assert record.time == pytest.approx(1 - record.step * 0.999 / 7)
        hidden_LD = calls.hidden_of(tiny_denoiser, record.state)
        _assert_distribution(record, tiny_denoiser, hidden_LD[masked])
    assert (final != mask_token_id).all()


def test_targets_are_never_filtered_or_tempered_by_the_sampling(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    (start,) = _states(tiny_denoiser, 1)
    distributions = []
    for sampler in (
        _sampler("origin", temperature=3.0, top_k=1, top_p=0.1),
        _sampler("origin", temperature=0.0, top_k=0, top_p=1.0),
    ):
        request = calls.trajectory_request(
            [start], sampler=sampler, capture=EVERY_STEP, targets=LOGITS
        )
        with connect(shared.address) as stub:
            first = collect(stub.SampleTrajectories(request)).targets[0]
        distributions.append(first.distribution)
    _assert_same_distribution(*distributions)


def test_the_client_samples_records_before_ends(
    shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    starts = _ragged(tiny_denoiser)
    with TeacherClient(shared.address) as client:
        items = list(
            client.sample(
                starts,
                sequence_ids=range(len(starts)),
                seeds=range(len(starts)),
                sampler=wire.SamplerSpec(algorithm="entropy", num_steps=5),
                capture=wire.CaptureSpec(every_n_steps=1),
                targets=wire.TargetSpec(encoding="top_k", top_k=3),
            )
        )
    ended = [item.sequence_id for item in items if isinstance(item, wire.Trajectory)]
    assert sorted(ended) == list(range(len(starts)))
    for sequence_id in ended:
        own = [item for item in items if item.sequence_id == sequence_id]
        assert isinstance(own[-1], wire.Trajectory)
        steps = [item.step for item in own[:-1] if isinstance(item, codec.StepTargets)]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_request_returns_exactly_the_rest(
    algorithm: str, shared: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    # Fewer masks than steps, so that some collected steps are idle.
    start = calls.make_state(tiny_denoiser.info, length=14, num_masked=6)
    request = calls.trajectory_request(
        [start], sampler=_sampler(algorithm, num_steps=10), capture=EVERY_STEP, targets=TOP_K
    )
    with connect(shared.address) as stub:
        whole = collect(stub.SampleTrajectories(request))
        frozen = start != tiny_denoiser.info.mask_token_id
        for index, last in enumerate(whole.targets):
            resumed = calls.resumed_after(request, last, frozen=frozen)
            rest = collect(stub.SampleTrajectories(resumed))
            left = whole.targets[index + 1 :]
            assert [record.step for record in rest.targets] == [record.step for record in left]
            for record, expected in zip(rest.targets, left, strict=True):
                assert record.state_digest == expected.state_digest
                assert record.num_forwards == expected.num_forwards
                np.testing.assert_array_equal(record.unmask_steps, expected.unmask_steps)
                _assert_same_distribution(record.distribution, expected.distribution)
            end, expected_end = rest.trajectories[0], whole.trajectories[0]
            assert end.num_collected_steps == len(left)
            end.num_collected_steps = expected_end.num_collected_steps
            assert end == expected_end


# Batching.


def _mixed_requests(denoiser: Denoiser) -> list[pb.SampleTrajectoriesRequest]:
    starts = _ragged(denoiser)
    encodings = [HIDDEN, LOGITS, TOP_K]
    return [
        calls.trajectory_request(
            starts,
            sampler=_sampler(algorithm, num_steps=4 + 3 * index),
            capture=EVERY_STEP,
            targets=encodings[index % 3],
            client_id=f"{algorithm}-{index}",
            seed=100 * index,
        )
        for index in range(2)
        for algorithm in ALGORITHMS
    ]


def test_a_request_is_answered_alike_alone_and_among_twenty_others(
    denoiser: ControlledDenoiser,
) -> None:
    mine = [
        calls.trajectory_request(
            _ragged(denoiser)[:4],
            sampler=_sampler(algorithm),
            capture=EVERY_STEP,
            targets=TOP_K,
            client_id=f"mine-{algorithm}",
        )
        for algorithm in ALGORITHMS
    ]
    scores = [
        calls.score_request(
            _states(denoiser, 3, length=8 + 5 * n), targets=targets, client_id=f"score-{n}"
        )
        for n, targets in enumerate([HIDDEN, LOGITS, TOP_K] * 4)
    ]
    mixed = _mixed_requests(denoiser)
    assert len(scores) + len(mixed) > 20
    with (
        servers.serve(denoiser) as running,
        connect(running.address) as stub,
        ThreadPoolExecutor(len(mine) + len(scores) + len(mixed)) as pool,
    ):
        alone = [collect(stub.SampleTrajectories(request)) for request in mine]
        before = running.engine.snapshot()

        def score(request: pb.ScoreStatesRequest) -> calls.Answers:
            return collect(stub.ScoreStates(request))

        def sample(request: pb.SampleTrajectoriesRequest) -> calls.Answers:
            return collect(stub.SampleTrajectories(request))

        # Held up until all of them wait, so that they really share forwards.
        denoiser.hold()
        others = [pool.submit(score, request) for request in scores]
        others += [pool.submit(sample, request) for request in mixed]
        together = [pool.submit(sample, request) for request in mine]
        num_tokens = sum(calls.num_tokens(request) for request in scores)
        num_tokens += sum(calls.num_tokens(request) for request in mixed + mine)
        wait_until(lambda: running.engine.load().num_queued_tokens == num_tokens)
        denoiser.allow()
        results = [future.result(calls.TIMEOUT_S) for future in together]
        for future in others:
            future.result(calls.TIMEOUT_S)
        after = running.engine.snapshot()
    assert after.num_shared_forwards - before.num_shared_forwards > 3
    assert after.num_mixed_forwards > before.num_mixed_forwards
    num_rows = after.num_forward_rows - before.num_forward_rows
    assert num_rows / (after.num_forwards - before.num_forwards) > 3
    for one, other in zip(alone, results, strict=True):
        assert one.trajectories == other.trajectories
        for sequence_id in range(4):
            pairs = zip(one.of_sequence(sequence_id), other.of_sequence(sequence_id), strict=True)
            for left, right in pairs:
                assert (left.step, left.state_digest) == (right.step, right.state_digest)
                assert left.num_forwards == right.num_forwards
                _assert_same_distribution(left.distribution, right.distribution)


def test_a_deterministic_server_gives_the_same_bytes_alone_and_among_others(
    tiny_denoiser: Denoiser,
) -> None:
    request = calls.trajectory_request(
        _ragged(tiny_denoiser), sampler=_sampler("p2"), capture=EVERY_STEP, targets=LOGITS
    )
    other = calls.score_request(_states(tiny_denoiser, 40), client_id="other")
    with (
        servers.serve(tiny_denoiser, deterministic=True) as running,
        connect(running.address) as stub,
        ThreadPoolExecutor(2) as pool,
    ):
        alone = collect(stub.SampleTrajectories(request))
        busy = [pool.submit(lambda: collect(stub.ScoreStates(other))) for _ in range(2)]
        together = collect(stub.SampleTrajectories(request))
        for future in busy:
            future.result(calls.TIMEOUT_S)
    assert sorted(alone.payloads) == sorted(together.payloads)
    assert alone.trajectories == together.trajectories


def test_a_stream_whose_window_holds_one_record_goes_on_as_it_is_read(
    tiny_denoiser: Denoiser,
) -> None:
    request = calls.trajectory_request(
        _ragged(tiny_denoiser), sampler=_sampler("p2"), capture=EVERY_STEP
    )
    with (
        servers.serve(tiny_denoiser, stream_window_bytes=1) as running,
        connect(running.address) as stub,
    ):
        narrow = collect(stub.SampleTrajectories(request, timeout=calls.TIMEOUT_S))
    with servers.serve(tiny_denoiser) as running, connect(running.address) as stub:
        wide = collect(stub.SampleTrajectories(request, timeout=calls.TIMEOUT_S))
    assert narrow.trajectories == wide.trajectories
    assert len(narrow.targets) == len(wide.targets)


# Callers that leave, wait too long, or come too many.


def _assert_nothing_is_left(running: servers.RunningServer) -> None:
    wait_until(lambda: running.engine.load().num_queued_tokens == 0)
    with connect(running.address) as stub:
        load = stub.GetLoad(pb.GetLoadRequest())
    assert load.num_admitted_rows == (
        load.num_done_rows + load.num_cancelled_rows + load.num_expired_rows + load.num_failed_rows
    )
    assert (load.num_live_rows, load.num_waiting_rows) == (0, 0)


def test_a_caller_that_leaves_while_queued_frees_its_rows(
    denoiser: ControlledDenoiser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with servers.serve(denoiser) as running, connect(running.address) as stub:
        denoiser.hold()
        first = stub.ScoreStates(calls.score_request(_states(denoiser, 1)))
        denoiser.wait_held()
        queued = stub.ScoreStates(calls.score_request(_states(denoiser, 4), client_id="gone"))
        wait_until(lambda: running.engine.load().num_queued_tokens == 5 * 16)
        queued.cancel()
        # Its handler has run to its end before the engine is let on.
        wait_until(lambda: "client=gone" in caplog.text)
        denoiser.allow()
        assert len(collect(first).targets) == 1
        _assert_nothing_is_left(running)
        assert running.engine.snapshot().outcomes[Outcome.CANCELLED] == 4
        assert len(denoiser.batches) == 1
    assert "client=gone kind=score status=cancelled rows=4" in caplog.text


def _endless(denoiser: Denoiser, *, count: int) -> pb.SampleTrajectoriesRequest:
    """Far more bytes than fit between server and client: 300 KiB a step."""
    return calls.trajectory_request(
        [
            calls.make_state(denoiser.info, length=250, num_masked=249, seed=seed)
            for seed in range(count)
        ],
        sampler=pb.SamplerSpec(algorithm=pb.ALGORITHM_P2, num_steps=400),
        capture=EVERY_STEP,
        targets=LOGITS,
        client_id="endless",
    )


def test_a_caller_that_leaves_while_its_stream_is_blocked_frees_its_rows(
    denoiser: ControlledDenoiser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with servers.serve(denoiser, stream_window_bytes=100_000) as running:
        with connect(running.address) as stub:
            call = stub.SampleTrajectories(_endless(denoiser, count=4))
            next(call)
            stalled = _Stall(running)
            wait_until(stalled, limit_s=60)
            assert running.engine.load().num_live_rows == 4
            # Others are served meanwhile.
            with connect(running.address) as other:
                request = calls.score_request(_states(denoiser, 3))
                assert len(collect(other.ScoreStates(request)).targets) == 3
            call.cancel()
            _assert_nothing_is_left(running)
        assert running.engine.snapshot().outcomes[Outcome.CANCELLED] == 4
    assert "client=endless kind=trajectory status=cancelled rows=4" in caplog.text


class _Stall:
    """True once the engine has made no payload for a hundred polls in a row."""

    def __init__(self, running: servers.RunningServer) -> None:
        self._running = running
        self._num_bytes = -1
        self._num_polls = 0

    def __call__(self) -> bool:
        num_bytes = self._running.engine.snapshot().num_payload_bytes
        self._num_polls = self._num_polls + 1 if num_bytes == self._num_bytes else 0
        self._num_bytes = num_bytes
        return self._num_polls > 100


def test_a_closed_connection_frees_its_rows(denoiser: ControlledDenoiser) -> None:
    with servers.serve(denoiser, stream_window_bytes=100_000) as running:
        with connect(running.address) as stub:
            call = stub.SampleTrajectories(_endless(denoiser, count=2))
            next(call)
        _assert_nothing_is_left(running)
        assert running.engine.snapshot().outcomes[Outcome.CANCELLED] == 2


def test_a_passed_deadline_frees_its_rows(denoiser: ControlledDenoiser) -> None:
    with (
        servers.serve(denoiser, stream_window_bytes=100_000) as running,
        connect(running.address) as stub,
    ):
        request = _endless(denoiser, count=2)
        told = refusal(lambda: list(stub.SampleTrajectories(request, timeout=0.3)))
        assert told.code is grpc.StatusCode.DEADLINE_EXCEEDED
        _assert_nothing_is_left(running)
        outcomes = running.engine.snapshot().outcomes
        assert outcomes[Outcome.EXPIRED] + outcomes[Outcome.CANCELLED] == 2


def test_the_servers_own_deadline_bounds_a_call_without_one(
    denoiser: ControlledDenoiser,
) -> None:
    with (
        servers.serve(denoiser, max_deadline_s=0.3) as running,
        connect(running.address) as stub,
    ):
        told = refusal(lambda: list(stub.SampleTrajectories(_endless(denoiser, count=2))))
        assert (told.code, told.reason) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "DEADLINE_EXCEEDED",
        )
        _assert_nothing_is_left(running)
        assert running.engine.snapshot().outcomes[Outcome.EXPIRED] == 2


def test_an_overloaded_server_refuses_with_a_retry_hint(denoiser: ControlledDenoiser) -> None:
    with (
        servers.serve(denoiser, max_queue_tokens=100) as running,
        connect(running.address) as stub,
    ):
        denoiser.hold()
        first = stub.ScoreStates(calls.score_request(_states(denoiser, 5)))
        wait_until(lambda: running.engine.load().num_queued_tokens == 80)
        request = calls.score_request(_states(denoiser, 2))
        told = refusal(lambda: list(stub.ScoreStates(request)))
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert told.retry_after_s is not None and told.retry_after_s > 0
        assert int(told.pushback_ms) == pytest.approx(told.retry_after_s * 1000)
        assert "limit 100" in told.message
        denoiser.allow()
        assert len(collect(first).targets) == 5
        assert len(collect(stub.ScoreStates(request)).targets) == 2
        _assert_nothing_is_left(running)


def test_a_failed_forward_is_internal_and_names_its_cause(denoiser: ControlledDenoiser) -> None:
    denoiser.poison_id = 7
    poisoned = calls.filled_state(denoiser.info, 7, length=16)
    with servers.serve(denoiser) as running, connect(running.address) as stub:
        told = refusal(lambda: list(stub.ScoreStates(calls.score_request([poisoned]))))
        assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_FAILED")
        assert "RuntimeError: poisoned forward" in told.message
        clean = calls.filled_state(denoiser.info, 8, length=16)
        assert len(collect(stub.ScoreStates(calls.score_request([clean]))).targets) == 1
        _assert_nothing_is_left(running)


# Health, load, the end.


def _health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)  # type: ignore[attr-defined]


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_is_serving_from_the_first_moment(tiny_denoiser: Denoiser) -> None:
    with servers.serve(tiny_denoiser) as running:
        assert _health(running.address, SERVICE) == SERVING
        assert _health(running.address, "") == SERVING


def test_health_is_not_serving_while_a_forward_hangs(denoiser: ControlledDenoiser) -> None:
    with (
        servers.serve(denoiser, health_interval_s=0.2) as running,
        connect(running.address) as stub,
    ):
        denoiser.hold()
        call = stub.ScoreStates(calls.score_request(_states(denoiser, 1)))
        wait_until(lambda: _health(running.address, SERVICE) == NOT_SERVING)
        assert _health(running.address, "") == SERVING
        denoiser.allow()
        assert len(collect(call).targets) == 1
        wait_until(lambda: _health(running.address, SERVICE) == SERVING)


def test_a_draining_server_refuses_new_work_and_finishes_what_it_has(
    denoiser: ControlledDenoiser,
) -> None:
    with servers.serve(denoiser) as running, connect(running.address) as stub:
        request = calls.trajectory_request(
            _states(denoiser, 2), sampler=_sampler("origin"), capture=EVERY_STEP
        )
        denoiser.hold()
        call = stub.SampleTrajectories(request)
        denoiser.wait_held()
        running.server.request_stop()
        wait_until(lambda: running.engine.load().draining)
        told = refusal(lambda: list(stub.SampleTrajectories(request)))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert _health(running.address, SERVICE) == NOT_SERVING
        assert _health(running.address, "") == NOT_SERVING
        assert stub.GetLoad(pb.GetLoadRequest()).draining
        denoiser.allow()
        assert len(collect(call).trajectories) == 2
        assert running.engine.snapshot().outcomes[Outcome.DONE] == 2


def test_a_stream_that_outlives_the_drain_is_handed_back(denoiser: ControlledDenoiser) -> None:
    """UNAVAILABLE, which a client resumes at another replica."""
    with servers.serve(denoiser, drain_timeout_s=0.2) as running, connect(running.address) as stub:
        # A reader that is there, and an engine that is slow.
        denoiser.hold()
        call = stub.SampleTrajectories(_endless(denoiser, count=1))
        denoiser.wait_held()
        running.server.request_stop()
        denoiser.allow()
        told = refusal(lambda: collect(call))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert running.engine.snapshot().outcomes[Outcome.FAILED] == 1


def test_a_server_whose_engine_dies_stops_by_itself(denoiser: ControlledDenoiser) -> None:
    with servers.serve(denoiser, health_interval_s=0.05) as running:
        denoiser.is_broken = True
        wait_until(lambda: not running.is_alive)
        assert not running.ended_as_asked


def test_the_load_counts_rows_forwards_tokens_and_bytes(
    denoiser: ControlledDenoiser,
) -> None:
    states: Sequence[np.ndarray] = _ragged(denoiser)
    with servers.serve(denoiser) as running, connect(running.address) as stub:
        answers = collect(stub.ScoreStates(calls.score_request(states)))
        load = stub.GetLoad(pb.GetLoadRequest())
        assert load.num_admitted_rows == load.num_done_rows == len(states)
        assert load.num_forwards == len(denoiser.batches)
        # One has no mask, and nothing to be told by a forward.
        run = [state for state in states if (state == denoiser.info.mask_token_id).any()]
        assert load.num_forward_rows == len(run) == len(states) - 1
        assert load.num_forward_tokens == sum(len(state) for state in run)
        # Packed: rows of five lengths, and no padding.
        assert load.num_padded_tokens == load.num_forward_tokens
        assert load.num_target_positions == sum(len(record.positions) for record in answers.targets)
        assert load.num_payload_bytes == sum(len(payload) for payload in answers.payloads)
        assert load.peak_rss_bytes > 2**20
        assert load.busy_s > 0
        assert load.backlog_s == 0
        assert not load.draining


def test_each_request_is_one_line_of_the_log(
    shared: servers.RunningServer, tiny_denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = calls.score_request(_states(tiny_denoiser, 2), client_id="me")
    request.context.request_id = "first"
    request.context.cohort.run_id = "run"
    request.context.cohort.step = 7
    request.context.cohort.num_requests = 2
    bad = calls.score_request([np.array([10_000])], client_id="me")
    with connect(shared.address) as stub:
        answers = collect(stub.ScoreStates(request))
        refusal(lambda: list(stub.ScoreStates(bad)))
    wait_until(lambda: caplog.text.count("client=me") == 2)
    lines = [record.getMessage() for record in caplog.records]
    good, refused = [line for line in lines if "client=me" in line]
    num_bytes = sum(len(payload) for payload in answers.payloads)
    assert good.startswith(
        "request id=first client=me kind=score status=ok rows=2 tokens=32 forwards=2 "
        f"positions=16 bytes={num_bytes} seconds="
    )
    assert good.endswith(" cohort=run/7/2")
    # A request without a name is given one.
    assert not refused.startswith("request id= ")
    assert " kind=- status=invalid_request rows=0 " in refused
    assert 'error="states.token_ids has id 10000' in refused
