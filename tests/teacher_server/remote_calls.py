"""Requests to engines in processes of their own, as the front makes them."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from masked_diffusion.families import Denoiser
from protos import teacher_pb2 as pb
from teacher_server.config import LimitsConfig
from teacher_server.engine.host import EngineHost
from teacher_server.engine.sequence import Request
from teacher_server.engine.stream import OutputStream, StreamEnd, StreamItem, TargetsReady
from teacher_server.requests import RequestParser
from tests.teacher_server import calls

WINDOW_BYTES = 1 << 20


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def submit(
    engine: EngineHost,
    message: pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest,
    loop: asyncio.AbstractEventLoop,
    denoiser: Denoiser,
    revision: str,
) -> Request:
    parser = RequestParser(denoiser.info, LimitsConfig(), model_dtype="f32", revision=revision)
    stream = OutputStream(loop=loop, window_bytes=WINDOW_BYTES, on_room=engine.wake)
    request = (
        parser.score(message, stream, remaining_s=None)
        if isinstance(message, pb.ScoreStatesRequest)
        else parser.trajectories(message, stream, remaining_s=None)
    )
    engine.submit(request)
    return request


def next(request: Request, loop: asyncio.AbstractEventLoop) -> StreamItem:
    assert isinstance(request.stream, OutputStream)
    item = asyncio.run_coroutine_threadsafe(request.stream.get(), loop).result(30)
    if isinstance(item, TargetsReady):
        request.stream.release(len(item.payload))
    return item


def read(
    engine: EngineHost, request: Request, loop: asyncio.AbstractEventLoop
) -> tuple[list[bytes], list[bytes], StreamEnd]:
    """Payloads, final ids, and the end."""
    payloads, finals = [], []
    while not isinstance(item := next(request, loop), StreamEnd):
        if isinstance(item, TargetsReady):
            payloads.append(item.payload)
        else:
            finals.append(item.token_ids)
    engine.close(request)
    return payloads, finals, item


def trajectory(
    denoiser: Denoiser, encoding: pb.Encoding, *, num_steps: int = 6
) -> pb.SampleTrajectoriesRequest:
    return calls.trajectory_request(
        [calls.make_state(denoiser.info, length=60, num_masked=40)],
        sampler=pb.SamplerSpec(algorithm=pb.ALGORITHM_P2, num_steps=num_steps, temperature=0.8),
        capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1),
        targets=pb.TargetSpec(encoding=encoding, top_k=8 * (encoding == pb.ENCODING_TOP_K)),
    )
