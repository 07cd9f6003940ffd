"""An engine in its thread, and an event loop in another, as the server has them; no sockets."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from masked_diffusion.families import Denoiser
from protos import codec, errors
from protos import teacher_pb2 as pb
from teacher_server.config import EngineConfig, LimitsConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Outcome, Request
from teacher_server.engine.stream import (
    OutputStream,
    StreamEnd,
    StreamItem,
    TargetsReady,
    TrajectoryDone,
)
from teacher_server.requests import RequestParser
from tests.teacher_server import calls
from tests.teacher_server.denoisers import ControlledDenoiser

REVISION = "revision"
WIDE_WINDOW_BYTES = 1 << 40


class EngineRun:
    """A running engine and the two ends of its streams."""

    def __init__(self, engine: Engine, denoiser: Denoiser, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.deaths: list[BaseException] = []
        self._loop = loop
        self._parser = RequestParser(
            denoiser.info, LimitsConfig(), model_dtype="f32", revision=REVISION
        )

    def stream(self, window_bytes: int = WIDE_WINDOW_BYTES) -> OutputStream:
        """A stream into the loop's thread."""
        return OutputStream(loop=self._loop, window_bytes=window_bytes, on_room=self.engine.wake)

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        client_id: str = "client",
        window_bytes: int = WIDE_WINDOW_BYTES,
        remaining_s: float | None = None,
        targets: pb.TargetSpec | None = None,
    ) -> Request:
        """Submits a score."""
        message = calls.score_request(states, targets=targets, client_id=client_id)
        return self.submit(
            self._parser.score(message, self.stream(window_bytes), remaining_s=remaining_s)
        )

    def sample(
        self,
        message: pb.SampleTrajectoriesRequest,
        *,
        window_bytes: int = WIDE_WINDOW_BYTES,
        remaining_s: float | None = None,
    ) -> Request:
        """Submits trajectories."""
        stream = self.stream(window_bytes)
        return self.submit(self._parser.trajectories(message, stream, remaining_s=remaining_s))

    def submit(self, request: Request) -> Request:
        """Submits and returns it."""
        request.client_id = request.client_id or "client"
        self.engine.submit(request)
        return request

    def next_item(self, request: Request) -> StreamItem:
        """Reads one item, and releases its bytes."""
        assert isinstance(request.stream, OutputStream)
        item = asyncio.run_coroutine_threadsafe(request.stream.get(), self._loop).result(30)
        if isinstance(item, TargetsReady):
            request.stream.release(len(item.payload))
        return item

    def read(
        self, request: Request
    ) -> tuple[list[codec.StepTargets], list[TrajectoryDone], errors.TeacherError | None]:
        """Reads to the end: targets, ends of trajectories, and how the request ended."""
        targets: list[codec.StepTargets] = []
        done: list[TrajectoryDone] = []
        while True:
            item = self.next_item(request)
            if isinstance(item, StreamEnd):
                return targets, done, item.error
            if isinstance(item, TargetsReady):
                targets.append(codec.decode_targets(item.payload))
            else:
                done.append(item)

    def outcomes(self) -> dict[str, int]:
        """How many rows ended how, those that are not 0."""
        counted = self.engine.snapshot().outcomes
        return {outcome.value: count for outcome, count in counted.items() if count}

    def assert_nothing_is_left(self) -> None:
        """Every admitted row ended once, and its tokens and bytes are free again."""
        calls.wait_until(lambda: self.engine.load().num_queued_tokens == 0)
        load, counters = self.engine.load(), self.engine.snapshot()
        assert (load.num_live_rows, load.num_waiting_rows) == (0, 0)
        assert counters.num_admitted_rows == sum(counters.outcomes[kind] for kind in Outcome)


@contextlib.contextmanager
def run_engine(
    denoiser: Denoiser, *, engine_class: type[Engine] = Engine, **config: object
) -> Iterator[EngineRun]:
    """Runs an engine until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event-loop")
    thread.start()
    deaths: list[BaseException] = []
    engine = engine_class(
        denoiser,
        EngineConfig(**config),  # type: ignore[arg-type]
        revision=REVISION,
        on_dead=deaths.append,
    )
    try:
        engine.start()
        run = EngineRun(engine, denoiser, loop)
        run.deaths = deaths
        yield run
    finally:
        # A test that failed may have left forwards held up.
        if isinstance(denoiser, ControlledDenoiser):
            denoiser.allow()
        engine.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
