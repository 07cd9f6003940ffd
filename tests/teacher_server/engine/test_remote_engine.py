import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from protos import codec, errors
from protos import teacher_pb2 as pb
from teacher_server import head
from teacher_server.arguments import parse_arguments
from teacher_server.config import EngineConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.remote_engine import RemoteEngine
from tests.teacher_server import calls
from tests.teacher_server.calls import wait_until
from tests.teacher_server.remote_calls import event_loop, read, submit, trajectory

RING_BYTES = 4096
"""Far less than a payload of logits, so that those come in many pieces."""


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with event_loop() as loop:
        yield loop


def _options(checkpoint: Path) -> argparse.Namespace:
    return parse_arguments([f"--model={checkpoint}", "--num-threads=1", "--skip-self-test"])


@pytest.fixture(scope="module")
def remote(tiny_checkpoint: Path) -> Iterator[RemoteEngine]:
    engine = RemoteEngine.launch(_options(tiny_checkpoint), EngineConfig(), ring_bytes=RING_BYTES)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def denoiser(tiny_checkpoint: Path) -> Denoiser:
    return load_denoiser(str(tiny_checkpoint), run_self_test=False).requires_grad_(False)


def test_both_engines_give_the_same_bytes(
    remote: RemoteEngine, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    revision = remote.facts.revision
    local = Engine(denoiser, EngineConfig(), revision=revision)
    local.start()
    state = calls.make_state(denoiser.info, length=33, num_masked=9)
    try:
        for encoding in (pb.ENCODING_HIDDEN, pb.ENCODING_TOP_K, pb.ENCODING_LOGITS):
            top_k = 8 * (encoding == pb.ENCODING_TOP_K)
            targets = pb.TargetSpec(encoding=encoding, top_k=top_k)
            score = calls.score_request([state], targets=targets)
            for message in (score, trajectory(denoiser, encoding)):
                answers = [
                    read(engine, submit(engine, message, loop, denoiser, revision), loop)
                    for engine in (remote, local)
                ]
                assert answers[0][0] and answers[0] == answers[1]
    finally:
        local.stop()
    # Seen by whoever has seen the end.
    assert remote.load().num_queued_tokens == 0
    assert remote.snapshot().outcomes["done"] == 6  # type: ignore[index]


def test_the_head_comes_in_chunks_and_is_the_whole_head(
    remote: RemoteEngine, denoiser: Denoiser
) -> None:
    chunk = remote.head_chunk(0)
    assert chunk is not None and chunk == head.head_chunk(denoiser, 0)
    assert remote.facts.num_head_bytes == len(chunk)
    assert remote.head_chunk(1) is None


def test_a_slow_reader_stalls_its_own_rows_only_and_leaving_frees_them(
    remote: RemoteEngine, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    revision = remote.facts.revision
    long = trajectory(denoiser, pb.ENCODING_LOGITS, num_steps=249)
    long.start_states.CopyFrom(
        calls.score_request([calls.make_state(denoiser.info, length=250, num_masked=249)]).states
    )
    slow = submit(remote, long, loop, denoiser, revision)
    wait_until(lambda: not slow.stream.has_room)
    held = slow.stream.pending_bytes
    quick = submit(remote, trajectory(denoiser, pb.ENCODING_HIDDEN), loop, denoiser, revision)
    assert read(remote, quick, loop)[2].error is None
    assert slow.stream.pending_bytes == held
    remote.close(slow)
    wait_until(lambda: remote.load().num_queued_tokens == 0)
    assert remote.snapshot().outcomes["cancelled"] == 1  # type: ignore[index]


def test_a_killed_engine_ends_its_streams_with_an_error(
    tiny_checkpoint: Path, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    engine = RemoteEngine.launch(_options(tiny_checkpoint), EngineConfig())
    deaths: list[BaseException] = []
    engine.on_dead = deaths.append
    engine.start()
    message = trajectory(denoiser, pb.ENCODING_LOGITS)
    os.kill(engine.pid, signal.SIGSTOP)
    request = submit(engine, message, loop, denoiser, engine.facts.revision)
    os.kill(engine.pid, signal.SIGKILL)
    _, _, end = read(engine, request, loop)
    assert isinstance(end.error, errors.EngineError)
    wait_until(lambda: len(deaths) == 1)
    with pytest.raises(errors.EngineError):
        submit(engine, message, loop, denoiser, engine.facts.revision)
    engine.stop()
    assert not engine.load().healthy


def test_an_engine_ends_with_a_front_that_is_killed(tiny_checkpoint: Path) -> None:
    front = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "teacher_server.server",
            f"--model={tiny_checkpoint}",
            "--listen=127.0.0.1:0",
            "--num-threads=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert front.stdout is not None
    assert b"listening" in front.stdout.readline()
    (engine,) = psutil.Process(front.pid).children()
    front.kill()
    front.wait()
    front.stdout.close()
    engine.wait(10)


def test_payloads_larger_than_the_ring_come_whole_and_in_step_order(
    remote: RemoteEngine, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    message = trajectory(denoiser, pb.ENCODING_LOGITS)
    request = submit(remote, message, loop, denoiser, remote.facts.revision)
    payloads, finals, _ = read(remote, request, loop)
    assert [codec.decode_targets(payload).step for payload in payloads] == list(range(6))
    assert len(payloads[0]) > RING_BYTES and len(finals) == 1
