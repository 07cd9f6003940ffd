"""The front's side of an engine that runs in a process of its own."""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from masked_diffusion.families import DenoiserInfo
from protos import channel, errors
from teacher_server.config import EngineConfig
from teacher_server.engine import messages, shared_ring
from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.queue import AdmissionQueue, check_readers, retry_hint_s
from teacher_server.engine.sequence import Request
from teacher_server.engine.shared_ring import RingReader
from teacher_server.engine.stream import StreamEnd, TargetsReady, TrajectoryDone
from teacher_server.facts import TeacherFacts

logger = logging.getLogger(__name__)

RING_BYTES = 16 * 1024 * 1024
_WAIT_S = 0.5
_STOP_TIMEOUT_S = 30.0


class EngineLostError(RuntimeError):
    """The engine's process ended by itself."""


class RemoteEngine:
    """Admits, and hands requests over; a thread writes to the engine, another reads from it.

    Payloads come through shared memory and are copied out at once, so a slow reader of a stream
    holds up nobody else.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        connection: socket.socket,
        ring: RingReader,
        config: EngineConfig,
    ) -> None:
        """Waits until the engine is ready; `launch` makes all of this.

        Raises:
            ValueError: it could not load; the message is the engine's own.
        """
        self._process = process
        self._connection = connection
        self._ring = ring
        self._config = config
        self._messages = messages.receive(connection)
        try:
            self.facts = self._wait_ready()
        except BaseException:
            self._messages.close()
            raise
        self.on_dead: Callable[[BaseException], None] | None = None
        self._queue = AdmissionQueue(max_tokens=config.max_queue_tokens)
        self._numbers: dict[Request, int] = {}
        """Of the requests whose streams are read."""
        self._unended: dict[int, Request] = {}
        self._head_calls: dict[int, concurrent.futures.Future[bytes | None]] = {}
        self._next_number = 0
        self._lock = threading.Lock()
        self._outbox: collections.deque[messages.Message] = collections.deque()
        self._pieces: list[bytes] = []
        self._load = EngineLoad(
            num_live_rows=0,
            num_waiting_rows=0,
            num_queued_tokens=0,
            backlog_s=0.0,
            draining=False,
            healthy=True,
        )
        self._load_s = time.monotonic()
        self._counters = EngineCounters()
        self._num_released_tokens = 0
        self._stopping = False
        self._finished = False
        self._failure: errors.TeacherError | None = None
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)

    @classmethod
    def launch(
        cls,
        options: argparse.Namespace,
        config: EngineConfig,
        *,
        ring_bytes: int = RING_BYTES,
        module: str = "teacher_server.engine.engine_process",
    ) -> "RemoteEngine":
        """Starts the process and waits until it has loaded and proved the teacher.

        Args:
            module: What runs there, with the same arguments.

        Raises:
            ValueError: it could not; the message says why.
        """
        ours, theirs = socket.socketpair()
        ring_fd = shared_ring.create(ring_bytes)
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module,
                    str(theirs.fileno()),
                    str(ring_fd),
                    json.dumps(vars(options)),
                ],
                pass_fds=(theirs.fileno(), ring_fd),
                stdin=subprocess.DEVNULL,
                # Standard output is the front's: its one line tells the address.
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                env=os.environ | channel.MALLOC_ENVIRONMENT,
            )
        ring = RingReader(ring_fd)
        os.close(ring_fd)
        try:
            return cls(process, ours, ring, config)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    @property
    def process_ids(self) -> list[int]:
        """The engine's."""
        return [self.pid]

    def start(self) -> None:
        """Starts serving; the engine has proved its denoiser already."""
        self._reader.start()
        self._writer.start()

    def submit(self, request: Request) -> None:
        """Admits a request and its rows, or raises the refusal; `close` must follow."""
        check_readers(list(self._numbers), max_bytes=self._config.max_pending_output_bytes)
        number = self._new_number()
        request.stream.on_release = lambda num_bytes: self._tell("released", number, num_bytes)
        self._numbers[request] = number
        self._unended[number] = request
        try:
            self._queue.submit(request, retry_after_s=lambda: retry_hint_s(self._load.backlog_s))
        except errors.TeacherError:
            self._numbers.pop(request, None)
            # The reader may have ended it already, as the engine died meanwhile.
            self._unended.pop(number, None)
            raise

    def close(self, request: Request) -> None:
        """Tells that nobody reads the request's stream any more; frees the rows that are left."""
        self._queue.close(request)

    def wake(self) -> None:
        """Nothing: the engine hears of each release."""

    def drain(self, *, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones; False when time ran out."""
        self._queue.drain()
        return self._queue.wait_empty(timeout_s=timeout_s)

    def stop(self) -> None:
        """Fails what is left and ends the process."""
        self._queue.drain()
        self._stopping = True
        if not self._reader.ident:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            return
        self._tell("stop")
        self._reader.join(_STOP_TIMEOUT_S)
        if self._reader.is_alive():
            # It is in a forward that takes longer than anybody waits.
            self._process.kill()
            self._reader.join()
        self._finished = True
        self._queue.wake()
        self._writer.join()
        self._connection.close()

    def load(self) -> EngineLoad:
        """The load as the engine told it last, with what was admitted since."""
        load, age_s = self._load, time.monotonic() - self._load_s
        return dataclasses.replace(
            load,
            num_queued_tokens=self._queue.num_tokens,
            draining=self._queue.draining,
            healthy=load.healthy
            and self._reader.is_alive()
            and age_s < self._config.health_interval_s,
        )

    def snapshot(self) -> EngineCounters:
        """A copy of the counters as the engine told them last."""
        return dataclasses.replace(self._counters, outcomes=dict(self._counters.outcomes))

    def head_chunk(self, index: int) -> bytes | None:
        """Fetches a part of the head; None behind the last.

        Raises:
            EngineError: the engine is gone.
        """
        number = self._new_number()
        answer: concurrent.futures.Future[bytes | None] = concurrent.futures.Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._head_calls[number] = answer
        self._tell("head", number, index)
        return answer.result()

    def _wait_ready(self) -> TeacherFacts:
        for tag, content in self._messages:
            if tag == "failed":
                raise ValueError(content)
            info = content.pop("info")
            special = tuple(info.pop("special_token_ids"))
            return TeacherFacts(info=DenoiserInfo(**info, special_token_ids=special), **content)
        raise ValueError(
            f"the engine's process ended with code {self._process.wait()} while it loaded; its own "
            "lines in the log tell more"
        )

    def _new_number(self) -> int:
        with self._lock:
            self._next_number += 1
            return self._next_number

    def _tell(self, *message: Any) -> None:
        self._outbox.append(list(message))
        self._queue.wake()

    def _write(self) -> None:
        while not self._finished:
            incoming, closed = self._queue.take(timeout_s=_WAIT_S)
            try:
                self._send_all(incoming, closed)
            except OSError:
                # The reader learns of the end too, and tells everyone.
                self._reader.join()
                return
            except Exception:
                logger.exception("the engine cannot be told")
                self._process.kill()
                self._reader.join()
                return

    def _send_all(self, incoming: Sequence[Request], closed: Sequence[Request]) -> None:
        for request in incoming:
            window_bytes = request.stream.window_bytes
            content = messages.encode_request(request)
            message = ["request", self._numbers[request], window_bytes, content]
            messages.send(self._connection, message)
        for request in closed:
            number = self._numbers.pop(request, None)
            if number is not None:
                messages.send(self._connection, ["close", number])
        while self._outbox:
            messages.send(self._connection, self._outbox.popleft())

    def _read(self) -> None:
        try:
            for tag, *fields in self._messages:
                getattr(self, f"_on_{tag}")(*fields)
        except Exception:
            logger.exception("the engine's messages cannot be followed")
            self._process.kill()
        self._end()

    def _on_piece(self, num_bytes: int) -> None:
        self._pieces.append(self._ring.read(num_bytes))
        self._tell("ack", num_bytes)

    def _take_bytes(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _on_targets(self, number: int, sequence_id: int, step: int) -> None:
        item = TargetsReady(sequence_id, step, self._take_bytes())
        self._unended[number].stream.put(item)

    def _on_trajectory(self, number: int, fields: dict[str, Any]) -> None:
        self._unended[number].stream.put(TrajectoryDone(**fields))

    def _on_end(
        self, number: int, error: list[Any] | None, num_forwards: int, num_positions: int
    ) -> None:
        request = self._unended.pop(number)
        request.num_forwards, request.num_target_positions = num_forwards, num_positions
        request.error = messages.decode_error(error)
        request.stream.put(StreamEnd(request.error))

    def _on_progress(
        self, load: dict[str, Any], counters: dict[str, Any], num_released_tokens: int
    ) -> None:
        self._load, self._load_s = messages.decode_load(load), time.monotonic()
        self._counters = messages.decode_counters(counters)
        self._queue.release(num_released_tokens - self._num_released_tokens)
        self._num_released_tokens = num_released_tokens

    def _on_head(self, number: int, is_there: bool) -> None:
        chunk = self._take_bytes()
        self._head_calls.pop(number).set_result(chunk if is_there else None)

    def _end(self) -> None:
        """The process is gone: ends every stream, and tells who serves."""
        code = self._process.wait()
        failure: errors.TeacherError = errors.DrainingError("the server stopped")
        if not self._stopping:
            failure = errors.EngineError(f"the engine died: its process ended with code {code}")
        with self._lock:
            self._failure = failure
        self._queue.fail(failure)
        for request in list(self._unended.values()):
            request.stream.put(StreamEnd(failure))
        self._unended.clear()
        self._queue.release(self._queue.num_tokens)
        for answer in list(self._head_calls.values()):
            answer.set_exception(failure)
        if not self._stopping and self.on_dead is not None:
            self.on_dead(EngineLostError(str(failure)))
