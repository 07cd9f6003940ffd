import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from protos import errors
from protos import teacher_pb2 as pb
from teacher_server.arguments import parse_arguments
from teacher_server.config import EngineConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.engine_group import EngineGroup
from teacher_server.engine.launch import launch_engines
from tests.teacher_server import calls
from tests.teacher_server.calls import wait_until
from tests.teacher_server.remote_calls import event_loop, read, submit, trajectory

CONFIG = EngineConfig(max_queue_tokens=1200)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with event_loop() as loop:
        yield loop


@pytest.fixture(scope="module")
def denoiser(tiny_checkpoint: Path) -> Denoiser:
    return load_denoiser(str(tiny_checkpoint), run_self_test=False).requires_grad_(False)


def _launch(checkpoint: Path) -> EngineGroup:
    arguments = [f"--model={checkpoint}", "--devices=cpu,cpu", "--skip-self-test"]
    group = launch_engines(parse_arguments(arguments), CONFIG)
    assert isinstance(group, EngineGroup)
    group.start()
    return group


@pytest.fixture(scope="module")
def group(tiny_checkpoint: Path) -> Iterator[EngineGroup]:
    group = _launch(tiny_checkpoint)
    yield group
    group.stop()


def _many(denoiser: Denoiser, *, num_rows: int = 6) -> pb.SampleTrajectoriesRequest:
    message = trajectory(denoiser, pb.ENCODING_LOGITS)
    states = [
        calls.make_state(denoiser.info, length=40 + row, num_masked=30, seed=row)
        for row in range(num_rows)
    ]
    message.start_states.CopyFrom(calls.score_request(states).states)
    message.seeds[:] = range(num_rows)
    return message


def test_rows_of_a_request_are_shared_and_come_back_as_one_engine_gives_them(
    group: EngineGroup, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    revision = group.facts.revision
    local = Engine(denoiser, EngineConfig(deterministic=True), revision=revision)
    local.start()
    before = [engine.snapshot().num_forward_rows for engine in group._engines]
    message = _many(denoiser)
    try:
        alone = read(local, submit(local, message, loop, denoiser, revision), loop)
    finally:
        local.stop()
    request = submit(group, message, loop, denoiser, revision)
    shared = read(group, request, loop)
    assert shared[2].error is None and len(shared[0]) == 6 * 6
    assert sorted(shared[1]) == sorted(alone[1])
    after = [engine.snapshot().num_forward_rows for engine in group._engines]
    assert [b - a for a, b in zip(before, after, strict=True)] == [18, 18]
    assert request.num_forwards == 36 and request.stream.pending_bytes == 0
    assert group.snapshot().num_forward_rows == sum(after)
    assert group.load().num_queued_tokens == 0 and not group._homes and group._work == [0, 0]


def test_equal_rows_in_flight_go_to_the_same_engine(
    group: EngineGroup, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    revision = group.facts.revision
    for engine in group._engines:
        os.kill(engine.pid, signal.SIGSTOP)
    requests = [submit(group, _many(denoiser), loop, denoiser, revision) for _ in range(2)]
    # Six contents of two rows each.
    assert [num_rows for _, num_rows in group._homes.values()] == [2] * 6
    for engine in group._engines:
        os.kill(engine.pid, signal.SIGCONT)
    first, second = (read(group, request, loop) for request in requests)
    assert sorted(first[0]) == sorted(second[0]) and sorted(first[1]) == sorted(second[1])


def test_a_request_that_one_engine_refuses_leaves_nothing_in_the_other(
    group: EngineGroup, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    revision = group.facts.revision
    for engine in group._engines:
        os.kill(engine.pid, signal.SIGSTOP)
    held = submit(group, _many(denoiser, num_rows=45), loop, denoiser, revision)
    with pytest.raises(errors.OverloadedError):
        submit(group, _many(denoiser, num_rows=12), loop, denoiser, revision)
    group.close(held)
    for engine in group._engines:
        os.kill(engine.pid, signal.SIGCONT)
    wait_until(lambda: group.load().num_queued_tokens == 0)
    wait_until(lambda: group._work == [0, 0] and not group._homes)


def test_an_engine_that_dies_ends_the_whole_request(
    tiny_checkpoint: Path, denoiser: Denoiser, loop: asyncio.AbstractEventLoop
) -> None:
    group = _launch(tiny_checkpoint)
    deaths: list[BaseException] = []
    group.on_dead = deaths.append
    for engine in group._engines:
        os.kill(engine.pid, signal.SIGSTOP)
    request = submit(group, _many(denoiser), loop, denoiser, group.facts.revision)
    os.kill(group._engines[1].pid, signal.SIGKILL)
    os.kill(group._engines[0].pid, signal.SIGCONT)
    assert isinstance(read(group, request, loop)[2].error, errors.EngineError)
    wait_until(lambda: len(deaths) == 1 and not group.load().healthy)
    group.stop()


def test_where_one_engine_cannot_load_none_is_left(tmp_path: Path) -> None:
    options = parse_arguments([f"--model={tmp_path}", "--devices=cpu,cpu"])
    with pytest.raises(ValueError, match=r"config\.json"):
        launch_engines(options, CONFIG)
