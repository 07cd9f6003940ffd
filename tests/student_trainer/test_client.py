"""The client against real servers: what it asks, what it survives, what it gives up on."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from masked_diffusion import checkpoints, sampling
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from protos import codec, errors
from protos.messages import TargetsMessage
from protos.parts import Part
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.replicas import RetryPolicy
from teacher_server.engine.sequence import Outcome
from teacher_server.grpc_service import TeacherServicer
from tests import tiny_models
from tests.servers import RunningServer, serve
from tests.tcp_proxy import TcpProxy
from tests.teacher_server.calls import hidden_of, make_state, wait_until
from tests.teacher_server.denoisers import ControlledDenoiser

PATIENT = RetryPolicy(call_timeout_s=60.0, give_up_after_s=30.0)
IMPATIENT = RetryPolicy(call_timeout_s=60.0, give_up_after_s=0.4)
HIDDEN = wire.TargetSpec(encoding="hidden")
LENGTHS = (60, 17, 42, 80, 33, 55, 21, 70)
NUM_STEPS = 12
EVERY_SECOND_STEP = wire.CaptureSpec(every_n_steps=2)


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    """Equal requests have bit-identical answers."""
    with serve(tiny_denoiser, deterministic=True) as running:
        yield running


@pytest.fixture(scope="module")
def states(tiny_denoiser) -> list[np.ndarray]:
    return [
        make_state(tiny_denoiser.info, length=length, num_masked=length // 2, seed=seed)
        for seed, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def other_denoiser(tiny_tokenizer) -> Denoiser:
    """Other weights with the same tokenizer."""
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer) + 20)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=1).eval().requires_grad_(False)


@pytest.fixture
def controlled(tiny_denoiser) -> Iterator[ControlledDenoiser]:
    denoiser = ControlledDenoiser(tiny_denoiser)
    yield denoiser
    denoiser.allow()


def free_address() -> str:
    """An address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def score(
    client: TeacherClient, states: Sequence[np.ndarray], spec: wire.TargetSpec = HIDDEN
) -> dict[int, codec.StepTargets]:
    """All records by sequence; ids count from 100."""
    ids = range(100, 100 + len(states))
    records = list(client.score(states, sequence_ids=ids, targets=spec))
    assert sorted(record.sequence_id for record in records) == list(ids)
    return {record.sequence_id: record for record in records}


def sampler_spec(algorithm: str) -> wire.SamplerSpec:
    return wire.SamplerSpec(
        algorithm=algorithm, num_steps=NUM_STEPS, temperature=0.9, top_k=40, alg_temp=0.3
    )


def sample(
    client: TeacherClient,
    starts: Sequence[np.ndarray],
    *,
    algorithm: str = "p2",
    capture: wire.CaptureSpec = EVERY_SECOND_STEP,
) -> Iterator[codec.StepTargets | wire.Trajectory]:
    return client.sample(
        starts,
        sequence_ids=range(len(starts)),
        seeds=range(50, 50 + len(starts)),
        sampler=sampler_spec(algorithm),
        capture=capture,
        targets=HIDDEN,
    )


def facts(item: codec.StepTargets | wire.Trajectory) -> tuple[object, ...]:
    """An item by its value."""
    if isinstance(item, wire.Trajectory):
        ids, steps = item.token_ids_L.tolist(), item.unmask_steps_L.tolist()
        return ("end", item.sequence_id, ids, steps, item.num_forwards, item.num_steps)
    # A client that made the state itself gets it back; the wire did not carry it.
    return ("record", item.sequence_id, item.step, codec.encode_targets(item))


def of_each_sequence(
    items: Sequence[codec.StepTargets | wire.Trajectory],
) -> dict[int, list[tuple[object, ...]]]:
    """The items of each sequence in their order; sequences overtake each other."""
    found: dict[int, list[tuple[object, ...]]] = {}
    for item in items:
        found.setdefault(item.sequence_id, []).append(facts(item))
    return found


def raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


# What is asked and answered ----------------------------------------------------------------------


def test_describe_tells_what_is_served(server, tiny_denoiser):
    info = tiny_denoiser.info
    with TeacherClient(server.address) as client:
        description = client.describe()
        assert client.describe() is description
    assert description.revision == checkpoints.weights_digest(tiny_denoiser)
    assert description.head_digest == checkpoints.head_digest(tiny_denoiser)
    assert description.tokenizer_fingerprint == info.tokenizer_fingerprint
    assert (description.vocab_size, description.mask_token_id) == (
        info.vocab_size,
        info.mask_token_id,
    )
    assert (description.max_length, description.hidden_size) == (info.max_length, info.hidden_size)
    assert set(description.encodings) == {"hidden", "top_k", "logits"}
    assert "p2" in description.algorithms


def test_the_head_is_the_teachers_without_its_padded_rows(server, tiny_denoiser):
    with TeacherClient(server.address) as client:
        head = client.head()
    expected = tiny_denoiser.head_weight[: tiny_denoiser.info.vocab_size].numpy(force=True)
    assert np.array_equal(head.weight_VD, expected)
    assert head.bias_V is None
    assert (head.logit_scale, head.logit_soft_cap) == (1.0, None)


def test_scores_are_the_denoisers_own_at_the_masked_positions(server, tiny_denoiser, states):
    with TeacherClient(server.address) as client:
        records = score(client, states)
        num_bytes = client.num_payload_bytes
    for record, state in zip((records[i] for i in sorted(records)), states, strict=True):
        positions = np.flatnonzero(state == tiny_denoiser.info.mask_token_id)
        assert np.array_equal(record.positions, positions)
        assert record.state is not None and np.array_equal(record.state, state)
        assert isinstance(record.distribution, codec.Hidden)
        # Float32 through two layers: 1e-6; a batch of other lengths sums in another order.
        np.testing.assert_allclose(
            record.distribution.values.data,
            hidden_of(tiny_denoiser, state)[positions],
            rtol=1e-4,
            atol=1e-5,
        )
    assert num_bytes > sum(len(record.positions) for record in records.values()) * 4 * 32


def test_nothing_to_score_asks_nobody(server):
    with TeacherClient(server.address) as client:
        assert score(client, []) == {}
        assert list(sample(client, [])) == []


@pytest.mark.parametrize("algorithm", ["origin", "entropy", "p2"])
def test_trajectories_are_those_of_the_in_process_loop(server, tiny_denoiser, states, algorithm):
    starts = [state for state in states if len(state) == 42]
    mask = tiny_denoiser.info.mask_token_id
    x_BL = torch.from_numpy(np.stack(starts).astype(np.int64))
    expected = sampling.sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=x_BL != mask,
        lengths_B=torch.tensor([42]),
        config=SamplerConfig(
            algorithm=algorithm, num_steps=NUM_STEPS, temperature=0.9, top_k=40, alg_temp=0.3
        ),
        seeds=[50],
        sequence_ids=[0],
    )

    with TeacherClient(server.address) as client:
        *records, end = sample(client, starts, algorithm=algorithm)

    assert isinstance(end, wire.Trajectory)
    assert end.token_ids_L.tolist() == expected.x[0].tolist()
    assert end.unmask_steps_L.tolist() == expected.unmask_steps_BL[0].tolist()
    steps = [record.step for record in records if isinstance(record, codec.StepTargets)]
    assert steps == sorted(set(steps)) and steps[0] == 0
    assert all(step % 2 == 0 for step in steps)


def test_frozen_masks_stay_masked(server, tiny_denoiser, states):
    (start,) = states[:1]
    mask = tiny_denoiser.info.mask_token_id
    frozen = start != mask
    frozen[np.flatnonzero(~frozen)[:3]] = True
    with TeacherClient(server.address) as client:
        (end,) = client.sample(
            [start],
            sequence_ids=[0],
            seeds=[1],
            sampler=sampler_spec("entropy"),
            capture=wire.CaptureSpec(),
            targets=HIDDEN,
            frozen=[frozen],
        )
    assert isinstance(end, wire.Trajectory)
    assert np.array_equal(end.token_ids_L[frozen], start[frozen])
    assert int((end.token_ids_L == mask).sum()) == 3


def test_load_tells_the_work_of_every_address(server, states):
    with TeacherClient([server.address, server.address]) as client:
        before = client.load()
        score(client, states)
        after = client.load()
    assert len(before) == len(after) == 2
    assert after[0].num_done_rows >= before[0].num_done_rows + len(states)


# Addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", ["", " , ", []])
def test_an_address_is_needed(addresses):
    with pytest.raises(ValueError, match="teacher_address is empty"):
        TeacherClient(addresses)


def test_work_goes_to_every_address(server, tiny_denoiser, states):
    with (
        serve(tiny_denoiser) as second,
        TeacherClient(f"{server.address}, {second.address}", retry=PATIENT) as client,
    ):
        before = [load.num_done_rows for load in client.load()]
        client.describe()
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(score, client, states) for _ in range(8)]
            assert all(len(future.result()) == len(states) for future in done)
        after = [load.num_done_rows for load in client.load()]
        assert client.num_retries == 0
    shares = [end - start for start, end in zip(before, after, strict=True)]
    assert sum(shares) == 8 * len(states)
    assert min(shares) >= 2 * len(states)


def test_a_client_with_one_call_at_a_time_uses_every_address_too(server, tiny_denoiser, states):
    with (
        serve(tiny_denoiser) as second,
        TeacherClient([server.address, second.address], retry=PATIENT) as client,
    ):
        client.describe()
        for _ in range(4):
            score(client, states)
        assert client.load()[1].num_done_rows == 2 * len(states)


def test_a_dead_address_costs_a_retry_and_no_result(server, states):
    with TeacherClient([free_address(), server.address], retry=PATIENT) as client:
        for _ in range(5):
            assert len(score(client, states)) == len(states)
        # After 2 s it is tried again, then after 4 s, then after 8 s.
        assert 1 <= client.num_retries <= 3


def test_an_address_with_other_weights_is_refused(server, other_denoiser, states):
    with (
        serve(other_denoiser) as second,
        TeacherClient([server.address, second.address], retry=PATIENT) as client,
        pytest.raises(errors.RevisionMismatchError, match=second.address),
    ):
        for _ in range(2):
            score(client, states)


# Streams that break ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["hidden", "top_k", "logits"])
def test_scores_of_broken_connections_are_those_of_a_whole_one(server, states, encoding):
    spec = wire.TargetSpec(encoding=encoding, top_k=8, temperatures=(1.0, 2.0))
    with TeacherClient(server.address, retry=PATIENT) as client:
        whole = score(client, states, spec)
        num_bytes = client.num_payload_bytes

    budgets = [num_bytes // 8, num_bytes // 4, num_bytes // 3]
    with (
        TcpProxy(server.address, budgets=budgets) as proxy,
        TeacherClient(proxy.address, retry=PATIENT) as client,
    ):
        pieced = score(client, states, spec)
        assert proxy.num_cut == client.num_retries == len(budgets)
        assert client.num_payload_bytes == num_bytes

    assert {i: facts(record) for i, record in pieced.items()} == {
        i: facts(record) for i, record in whole.items()
    }


@pytest.mark.parametrize(
    ("algorithm", "capture"),
    [
        ("origin", EVERY_SECOND_STEP),
        ("maskgit_plus", EVERY_SECOND_STEP),
        ("topk_margin", wire.CaptureSpec(steps=(1, 4, 5, 9))),
        ("entropy", wire.CaptureSpec(every_n_steps=1)),
        ("p2", EVERY_SECOND_STEP),
        ("p2", wire.CaptureSpec(steps=(1, 4, 5, 9))),
    ],
)
def test_trajectories_of_broken_connections_are_those_of_a_whole_one(
    server, states, algorithm, capture
):
    starts = states[:5]
    with TeacherClient(server.address, retry=PATIENT) as client:
        whole = of_each_sequence(list(sample(client, starts, algorithm=algorithm, capture=capture)))
        num_bytes = client.num_payload_bytes

    budgets = [num_bytes // 5, num_bytes // 4, num_bytes // 3]
    with (
        TcpProxy(server.address, budgets=budgets) as proxy,
        TeacherClient(proxy.address, retry=PATIENT) as client,
    ):
        pieced = of_each_sequence(
            list(sample(client, starts, algorithm=algorithm, capture=capture))
        )
        assert proxy.num_cut == client.num_retries == len(budgets)
        # Nothing that arrived is sent again.
        assert client.num_payload_bytes == num_bytes

    assert pieced == whole


@pytest.mark.parametrize("algorithm", ["origin", "p2"])
def test_trajectories_that_break_in_the_middle_of_a_batch_go_on(tiny_denoiser, states, algorithm):
    with serve(tiny_denoiser, max_padding_fraction=0.9) as server:
        with TeacherClient(server.address, retry=PATIENT) as client:
            whole = list(sample(client, states, algorithm=algorithm))
            num_bytes = client.num_payload_bytes
        with (
            TcpProxy(server.address, budgets=[num_bytes // 3, num_bytes // 4]) as proxy,
            TeacherClient(proxy.address, retry=PATIENT) as client,
        ):
            pieced = list(sample(client, states, algorithm=algorithm))
            assert client.num_retries == 2
            assert client.num_payload_bytes == num_bytes

    def ends(items):
        return {
            item.sequence_id: facts(item) for item in items if isinstance(item, wire.Trajectory)
        }

    def records(items):
        found = [item for item in items if isinstance(item, codec.StepTargets)]
        return {(record.sequence_id, record.step): record for record in found}

    assert ends(pieced) == ends(whole)
    assert records(pieced).keys() == records(whole).keys()
    for key, record in records(pieced).items():
        expected = records(whole)[key]
        for name in ("state", "positions", "unmask_steps"):
            assert np.array_equal(getattr(record, name), getattr(expected, name))
        assert (record.num_forwards, record.time) == (expected.num_forwards, expected.time)
        # Another batch sums in another order: float32 through two layers.
        np.testing.assert_allclose(
            record.distribution.values.data, expected.distribution.values.data, rtol=1e-4, atol=1e-5
        )


def test_a_broken_head_is_fetched_again(server, tiny_denoiser):
    num_bytes = tiny_denoiser.info.vocab_size * tiny_denoiser.info.hidden_size * 4
    with (
        TcpProxy(server.address, budgets=[num_bytes // 2]) as proxy,
        TeacherClient(proxy.address, retry=PATIENT) as client,
    ):
        head = client.head()
        assert client.num_retries == 1
    assert head.weight_VD.nbytes == num_bytes


def test_time_that_the_reader_takes_is_not_held_against_the_teacher(server, states):
    with (
        TcpProxy(server.address) as proxy,
        TeacherClient(proxy.address, retry=IMPATIENT) as client,
    ):
        items = sample(client, states)
        first = next(items)
        began_s = time.monotonic()
        wait_until(lambda: time.monotonic() - began_s > 2 * IMPATIENT.give_up_after_s)
        proxy.cut_all()
        pieced = of_each_sequence([first, *items])
        assert client.num_retries <= 1
    with TeacherClient(server.address, retry=PATIENT) as client:
        assert pieced == of_each_sequence(list(sample(client, states)))


def test_a_call_past_its_deadline_goes_on_in_another(controlled, states):
    retry = RetryPolicy(call_timeout_s=0.5, give_up_after_s=30.0)
    with (
        # A batch holds one row at most.
        serve(controlled, deterministic=True, max_batch_tokens=1) as server,
        TeacherClient(server.address, retry=retry) as client,
    ):
        client.describe()
        controlled.allow(3)
        items = client.score(states, sequence_ids=range(len(states)), targets=HIDDEN)
        found = [next(items) for _ in range(3)]
        controlled.wait_held()
        wait_until(lambda: server.engine.snapshot().outcomes[Outcome.DONE] == 3)
        threading.Timer(0.8, controlled.allow).start()
        found += items
        assert client.num_retries >= 1
    assert sorted(record.sequence_id for record in found) == list(range(len(states)))


# Bytes that are wrong ----------------------------------------------------------------------------


class TamperingServicer(TeacherServicer):
    """Flips a byte of so many records' data on its way out."""

    num_left = 0
    num_flipped = 0

    async def ScoreStates(self, request, context):  # noqa: N802
        async for answer in super().ScoreStates(request, context):
            sent = []
            for part in answer.parts:
                assert isinstance(part, Part)
                data = bytearray(part.data)
                if part.sequence_id == 102 and TamperingServicer.num_left:
                    TamperingServicer.num_left -= 1
                    TamperingServicer.num_flipped += 1
                    data[len(data) // 2] ^= 1
                sent.append(dataclasses.replace(part, data=bytes(data)))
            yield TargetsMessage(sent)


@pytest.fixture
def tampering(monkeypatch) -> type[TamperingServicer]:
    monkeypatch.setattr("teacher_server.server.TeacherServicer", TamperingServicer)
    monkeypatch.setattr(TamperingServicer, "num_left", 0)
    monkeypatch.setattr(TamperingServicer, "num_flipped", 0)
    return TamperingServicer


def test_altered_bytes_are_asked_for_again(tampering, tiny_denoiser, states):
    tampering.num_left = 2
    with (
        serve(tiny_denoiser, deterministic=True) as server,
        TeacherClient(server.address, retry=PATIENT) as client,
    ):
        pieced = score(client, states)
        assert client.num_retries == tampering.num_flipped == 2
        whole = score(client, states)
    assert {i: facts(record) for i, record in pieced.items()} == {
        i: facts(record) for i, record in whole.items()
    }


def test_bytes_that_are_always_altered_end_in_one_error(tampering, tiny_denoiser, states):
    tampering.num_left = 10**9
    with (
        serve(tiny_denoiser) as server,
        TeacherClient(server.address, retry=IMPATIENT) as client,
        pytest.raises(errors.CorruptStreamError, match="fails its CRC-32C") as caught,
    ):
        score(client, states)
    assert server.address in str(caught.value)
    assert "teacher-server runs there" not in str(caught.value)


# What is not mended ------------------------------------------------------------------------------


def test_other_weights_behind_the_same_address_end_the_run(tiny_denoiser, other_denoiser, states):
    with contextlib.ExitStack() as stack:
        with serve(tiny_denoiser) as server:
            client = stack.enter_context(TeacherClient(server.address, retry=PATIENT))
            score(client, states)
        stack.enter_context(serve(other_denoiser, listen=server.address))
        with pytest.raises(errors.RevisionMismatchError) as caught:
            score(client, states)
        num_retries = client.num_retries
        with pytest.raises(errors.RevisionMismatchError):
            list(sample(client, states))
        assert client.num_retries == num_retries
    assert client.describe().revision in str(caught.value)


def test_a_head_of_other_weights_is_refused(tiny_denoiser, other_denoiser):
    with contextlib.ExitStack() as stack:
        with serve(tiny_denoiser) as server:
            client = stack.enter_context(TeacherClient(server.address, retry=PATIENT))
            client.describe()
        stack.enter_context(serve(other_denoiser, listen=server.address))
        with pytest.raises(errors.HeadMismatchError):
            client.head()


def test_a_refused_request_is_not_asked_again(server, states):
    wrong = states[0].copy()
    wrong[3] = 10**6
    with TeacherClient(server.address, retry=PATIENT) as client:
        with pytest.raises(errors.InvalidRequestError, match="outside the vocabulary") as caught:
            score(client, [wrong])
        assert caught.value.field == "states.token_ids"
        assert server.address in str(caught.value)
        assert client.num_retries == 0


def test_nobody_there_is_told_with_the_address_and_the_mend():
    address = free_address()
    began_s = time.monotonic()
    with TeacherClient(address, retry=IMPATIENT) as client:
        with pytest.raises(errors.UnreachableError) as caught:
            client.describe()
        with pytest.raises(errors.UnreachableError, match=address):
            client.load()
    assert time.monotonic() - began_s < 5
    assert f"no progress with {address}" in str(caught.value)
    assert "check the address and that teacher-server runs there" in str(caught.value)


# Leaving -----------------------------------------------------------------------------------------


def test_close_unblocks_a_call_that_waits(controlled, states):
    with serve(controlled, deterministic=True) as server:
        client = TeacherClient(server.address, retry=PATIENT)
        client.describe()
        controlled.hold()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(raised, lambda: score(client, states))
            controlled.wait_held()
            began_s = time.monotonic()
            client.close()
            error = waiting.result(timeout=10)
            assert time.monotonic() - began_s < 2
        assert isinstance(error, errors.CancelledError)
        with pytest.raises(errors.CancelledError, match="closed"):
            score(client, states)
        controlled.allow()


def test_close_unblocks_a_pause_before_a_retry():
    client = TeacherClient(free_address(), retry=RetryPolicy(give_up_after_s=60.0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(raised, client.describe)
        # The fifth pause is 0.8 s at least.
        wait_until(lambda: client.num_retries >= 5)
        began_s = time.monotonic()
        client.close()
        error = waiting.result(timeout=10)
        assert time.monotonic() - began_s < 0.7
    assert isinstance(error, errors.TeacherError)


def test_a_reader_that_leaves_early_frees_its_rows(controlled, states):
    with (
        serve(controlled, deterministic=True) as server,
        TeacherClient(server.address, retry=PATIENT) as client,
    ):
        client.describe()
        controlled.allow(2)
        items = sample(client, states, capture=wire.CaptureSpec(every_n_steps=1))
        next(items)
        assert isinstance(items, Iterator)
        items.close()  # type: ignore[attr-defined]
        controlled.allow()
        wait_until(lambda: server.engine.snapshot().outcomes[Outcome.CANCELLED] == len(states))
        load = server.engine.load()
        assert (load.num_live_rows, load.num_waiting_rows, load.num_queued_tokens) == (0, 0, 0)
        # The client is as good as new.
        assert len(score(client, states)) == len(states)
        assert client.num_retries == 0
