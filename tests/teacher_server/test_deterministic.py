"""Deterministic mode over sockets: payloads of a request are the same bytes whatever else runs."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from masked_diffusion.checkpoints import load_denoiser, new_denoiser
from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.families.mdlm_config import MdlmConfig
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc
from tests import servers
from tests.fixtures.block_diffusion import FIXTURES
from tests.teacher_server import calls

NUM_RUNS = 50
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)
HIDDEN = pb.TargetSpec(encoding=pb.ENCODING_HIDDEN)
LOGITS = pb.TargetSpec(encoding=pb.ENCODING_LOGITS)
TOP_K = pb.TargetSpec(encoding=pb.ENCODING_TOP_K, top_k=8)
Ask = pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest
Stub = teacher_pb2_grpc.TeacherServiceStub


def _states(info: DenoiserInfo, lengths: Sequence[int], *, seed: int = 0) -> list[np.ndarray]:
    return [
        calls.make_state(info, length=length, num_masked=length // 2, seed=seed + row)
        for row, length in enumerate(lengths)
    ]


def _sampler(algorithm: pb.Algorithm, num_steps: int = 3, **options: float) -> pb.SamplerSpec:
    return pb.SamplerSpec(algorithm=algorithm, num_steps=num_steps, temperature=0.8, **options)  # type: ignore[arg-type]


def _watched(info: DenoiserInfo) -> list[Ask]:
    """One of each kind; a row that fills its bucket among them."""
    starts = _states(info, (32, 50, 21))
    return [
        calls.score_request(starts, targets=LOGITS),
        calls.trajectory_request(
            starts,
            sampler=_sampler(pb.ALGORITHM_ENTROPY, top_k=20),
            capture=EVERY_STEP,
            targets=TOP_K,
        ),
        calls.trajectory_request(
            starts[:2],
            sampler=_sampler(pb.ALGORITHM_P2, guidance_scale=0.5),
            capture=EVERY_STEP,
            targets=HIDDEN,
        ),
    ]


def _other(info: DenoiserInfo, random: np.random.Generator, client: int) -> Ask:
    states = _states(
        info,
        random.integers(4, 90, random.integers(1, 4)).tolist(),
        seed=int(random.integers(1 << 20)),
    )
    targets = (HIDDEN, LOGITS, TOP_K)[random.integers(3)]
    if random.random() < 0.5:
        return calls.score_request(states, targets=targets, client_id=f"{client}")
    algorithms = (pb.ALGORITHM_ENTROPY, pb.ALGORITHM_P2, pb.ALGORITHM_ORIGIN)
    return calls.trajectory_request(
        states,
        sampler=_sampler(algorithms[random.integers(3)], num_steps=int(random.integers(1, 5))),
        capture=EVERY_STEP,
        targets=targets,
        client_id=f"{client}",
        seed=int(random.integers(1000)),
    )


def _ask(stub: Stub, request: Ask) -> calls.Answers:
    if isinstance(request, pb.ScoreStatesRequest):
        return calls.collect(stub.ScoreStates(request, timeout=calls.TIMEOUT_S))
    return calls.collect(stub.SampleTrajectories(request, timeout=calls.TIMEOUT_S))


def _bytes(stub: Stub, request: Ask) -> list[bytes]:
    """All that was answered; rows of a request may come in any order."""
    answers = _ask(stub, request)
    ends = [end.SerializeToString() for end in answers.trajectories.values()]
    return sorted([*answers.payloads, *ends])


@contextlib.contextmanager
def _load(address: str, info: DenoiserInfo, *, num_clients: int) -> Iterator[None]:
    """Other clients, which ask for anything during the block."""
    stop = threading.Event()

    def ask(client: int) -> int:
        random, num_asked = np.random.default_rng(client), 0
        with calls.connect(address) as stub:
            while not stop.is_set():
                _ask(stub, _other(info, random, client))
                num_asked += 1
                stop.wait(random.exponential(0.1))
        return num_asked

    with ThreadPoolExecutor(num_clients) as pool:
        asking = [pool.submit(ask, client) for client in range(num_clients)]
        try:
            yield
        finally:
            stop.set()
        assert all(client.result(calls.TIMEOUT_S) for client in asking)


@contextlib.contextmanager
def _process(model: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    options = [f"--model={model}", "--listen=127.0.0.1:0", "--deterministic", "--num-threads=1"]
    with subprocess.Popen(
        [sys.executable, "-m", "teacher_server.server", *options, "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip().rpartition(" ")[2]
        finally:
            process.kill()


@pytest.mark.timeout(120)
def test_fifty_runs_under_load_a_replica_a_retry_and_a_resumed_stream_give_the_same_bytes(
    tiny_denoiser: Denoiser, tiny_checkpoint: Path
) -> None:
    info = tiny_denoiser.info
    watched = _watched(info)
    with (
        servers.serve(tiny_denoiser, deterministic=True) as running,
        calls.connect(running.address) as stub,
    ):
        replica = [_bytes(stub, request) for request in watched]
    with (
        _process(tiny_checkpoint) as address,
        calls.connect(address) as stub,
        ThreadPoolExecutor(len(watched)) as pool,
    ):
        before = stub.GetLoad(pb.GetLoadRequest())
        with _load(address, info, num_clients=2):
            for _ in range(NUM_RUNS):
                assert list(pool.map(lambda one: _bytes(stub, one), watched)) == replica
            _cancel(stub, watched[1])
            assert _bytes(stub, watched[1]) == replica[1]
            _assert_resumes_alike(stub, info)
        after = stub.GetLoad(pb.GetLoadRequest())
    # Eight rows a run are ours; one more a run, at least, must have been others'.
    assert after.num_admitted_rows - before.num_admitted_rows > 9 * NUM_RUNS


def _cancel(stub: Stub, request: Ask) -> None:
    assert isinstance(request, pb.SampleTrajectoriesRequest)
    call = stub.SampleTrajectories(request)
    next(iter(call))
    call.cancel()


def _assert_resumes_alike(stub: Stub, info: DenoiserInfo) -> None:
    (start,) = _states(info, [40])
    request = calls.trajectory_request(
        [start], sampler=_sampler(pb.ALGORITHM_ENTROPY), capture=EVERY_STEP, targets=TOP_K
    )
    whole = _ask(stub, request)
    for index, last in enumerate(whole.targets[:-1]):
        resumed = calls.resumed_after(request, last, frozen=start != info.mask_token_id)
        assert _ask(stub, resumed).payloads == whole.payloads[index + 1 :]


def _dit(noise: str, tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    config = MdlmConfig(
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        noise=noise,
        time_conditioning=True,
        model_length=64,
        hidden_dim=32,
        cond_dim=16,
        n_blocks=2,
        n_heads=2,
        dropout=0.0,
    )
    denoiser = new_denoiser(config, tokenizer, seed=0)
    return denoiser.eval().requires_grad_(False)


@pytest.fixture
def teacher(
    request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Denoiser:
    """Of the kind that the test names."""
    if request.param == "block_causal":
        FIXTURES[0].build(tmp_path)
        return load_denoiser(str(tmp_path)).requires_grad_(False)
    return _dit(request.param, tiny_tokenizer)


@pytest.mark.parametrize(
    ("teacher", "algorithm", "scale"),
    [
        ("absorbing", pb.ALGORITHM_ORIGIN, 0.0),
        ("absorbing", pb.ALGORITHM_ENTROPY, 0.5),
        ("uniform", pb.ALGORITHM_MULTINOMIAL, 0.0),
        ("block_causal", pb.ALGORITHM_LOW_CONFIDENCE, 0.0),
        ("block_causal", pb.ALGORITHM_LOW_CONFIDENCE, 0.5),
    ],
    indirect=["teacher"],
)
def test_every_kind_of_teacher_keeps_every_bit_among_others(
    teacher: Denoiser, algorithm: pb.Algorithm, scale: float
) -> None:
    def request(lengths: Sequence[int], seed: int) -> pb.SampleTrajectoriesRequest:
        spec = _sampler(algorithm, guidance_scale=scale)
        if teacher.info.noise == "uniform":
            spec.ClearField("guidance_scale")
        return calls.trajectory_request(
            _states(teacher.info, lengths, seed=seed),
            sampler=spec,
            capture=EVERY_STEP,
            targets=LOGITS,
            client_id=f"{seed}",
            seed=seed,
        )

    watched = request((20, 24, 12), 0)
    others = [request((9, 28, 22, 40), 100 + seed) for seed in range(3)]
    with (
        servers.serve(teacher, deterministic=True) as running,
        calls.connect(running.address) as stub,
        ThreadPoolExecutor(len(others)) as pool,
    ):
        alone = _bytes(stub, watched)
        for _ in range(3):
            busy = [pool.submit(_bytes, stub, other) for other in others]
            assert _bytes(stub, watched) == alone
            for one in busy:
                one.result(calls.TIMEOUT_S)
        counters = running.engine.snapshot()
    assert counters.num_padded_tokens >= counters.num_forward_tokens
