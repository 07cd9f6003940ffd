"""`python -m teacher_server.engine.engine_process SOCKET_FD RING_FD JSON`: an engine's own process.

Started by `RemoteEngine`. Ends with the front: when the socket's other end closes, at once.
"""

import argparse
import dataclasses
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from masked_diffusion.families import Denoiser
from protos import errors
from teacher_server import autotune
from teacher_server.arguments import load, prepare_torch
from teacher_server.engine import messages
from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Request
from teacher_server.engine.shared_ring import RingWriter
from teacher_server.engine.stream import (
    OutputWindow,
    StreamEnd,
    StreamItem,
    TargetsReady,
    TrajectoryDone,
)
from teacher_server.facts import facts_of

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.02
_IDLE_INTERVAL_S = 0.25

_Entry = tuple[int, StreamItem] | tuple[int, int] | None
"""(number of the request, item), (number of the call, index of a head's chunk), or the end."""


class _SentStream(OutputWindow):
    """The engine's side of a stream that is read in the front."""

    def __init__(
        self, number: int, window_bytes: int, engine: Engine, outbox: "queue.SimpleQueue[_Entry]"
    ) -> None:
        super().__init__(window_bytes=window_bytes, on_room=engine.wake)
        self._number = number
        self._outbox = outbox

    def _deliver(self, item: StreamItem) -> None:
        self._outbox.put((self._number, item))


class EngineProcess:
    """An engine between two threads: one reads what the front says, this one sends the results.

    The engine's own thread only puts items into the outbox, which the streams' windows bound.
    """

    def __init__(self, connection: socket.socket, ring: RingWriter) -> None:
        self._connection = connection
        self._ring = ring
        self._outbox: queue.SimpleQueue[_Entry] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}
        self._num_refused_tokens = 0
        self._is_dead = False
        self._progress_s = 0.0
        self._idle_interval_s = _IDLE_INTERVAL_S
        # Before the load: a front that is gone must be noticed whatever this process does.
        threading.Thread(target=self._read, daemon=True).start()

    def run(
        self,
        options: argparse.Namespace,
        *,
        engine_class: type[Engine],
        load_denoiser: Callable[[argparse.Namespace], Denoiser],
    ) -> int:
        """Loads, proves and serves until told to stop; the exit code."""
        try:
            denoiser = load_denoiser(options)
            config, revision = autotune.tuned(denoiser, options, revision=None)
            facts = facts_of(denoiser, revision=revision)
            # Well before the last news is too old: an idle engine must not look sick in between.
            self._idle_interval_s = min(_IDLE_INTERVAL_S, config.health_interval_s / 4)
            self._engine = engine_class(
                denoiser, config, revision=facts.revision, on_dead=self._on_engine_death
            )
            self._engine.start()
        except (ValueError, OSError) as error:
            messages.send(self._connection, ["failed", str(error)])
            return 1
        except Exception as error:
            logger.exception("the engine could not start")
            messages.send(self._connection, ["failed", f"{type(error).__name__}: {error}"])
            return 1
        messages.send(self._connection, ["ready", dataclasses.asdict(facts)])
        self._write()
        return int(self._is_dead)

    def _read(self) -> None:
        try:
            for tag, *fields in messages.receive(self._connection):
                getattr(self, f"_on_{tag}")(*fields)
        except BaseException:
            logger.exception("the engine's process failed")
        # The front is gone, and with it whoever could want what a forward is still computing.
        os._exit(1)

    def _on_request(self, number: int, window_bytes: int, fields: dict[str, object]) -> None:
        stream = _SentStream(number, window_bytes, self._engine, self._outbox)
        request = messages.decode_request(fields, stream)
        self._requests[number] = request
        try:
            self._engine.submit(request)
        except errors.TeacherError as error:
            self._num_refused_tokens += request.num_tokens
            stream.put(StreamEnd(error))

    def _on_close(self, number: int) -> None:
        self._engine.close(self._requests.pop(number))

    def _on_released(self, number: int, num_bytes: int) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.stream.release(num_bytes)

    def _on_ack(self, num_bytes: int) -> None:
        self._ring.acknowledge(num_bytes)

    def _on_head(self, number: int, index: int) -> None:
        self._outbox.put((number, index))

    def _on_stop(self) -> None:
        # Not here: a forward may take long, and the front may be gone before it ends.
        threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._engine.stop()
        self._outbox.put(None)

    def _on_engine_death(self, error: BaseException) -> None:
        self._is_dead = True
        self._outbox.put(None)

    def _write(self) -> None:
        interval_s = self._idle_interval_s
        while True:
            try:
                entry = self._outbox.get(timeout=interval_s)
            except queue.Empty:
                interval_s = self._send_progress()
                continue
            if entry is None:
                self._send_progress()
                return
            self._send_entry(entry)
            interval_s = _PROGRESS_INTERVAL_S
            if time.monotonic() - self._progress_s > _PROGRESS_INTERVAL_S:
                self._send_progress()

    def _send_entry(self, entry: tuple[int, StreamItem] | tuple[int, int]) -> None:
        number, item = entry
        match item:
            case TargetsReady():
                self._send_bytes(item.payload)
                self._send(["targets", number, item.sequence_id, item.step])
            case TrajectoryDone():
                self._send(["trajectory", number, dataclasses.asdict(item)])
            case StreamEnd():
                # Whoever has seen the end finds load and counters up to date.
                self._send_progress()
                request = self._requests.get(number)
                counts = (request.num_forwards, request.num_target_positions) if request else (0, 0)
                self._send(["end", number, messages.encode_error(item.error), *counts])
            case index:
                chunk = self._engine.head_chunk(index)
                self._send_bytes(chunk or b"")
                self._send(["head", number, chunk is not None])

    def _send_bytes(self, data: bytes) -> None:
        for num_bytes in self._ring.write(data):
            self._send(["piece", num_bytes])

    def _send_progress(self) -> float:
        """Returns the seconds after which to do so again, if nothing else is sent."""
        self._progress_s = time.monotonic()
        load = self._engine.load()
        released = self._engine.num_released_tokens + self._num_refused_tokens
        self._send(messages.encode_progress(load, self._engine.snapshot(), released))
        return _PROGRESS_INTERVAL_S if load.num_queued_tokens else self._idle_interval_s

    def _send(self, message: messages.Message) -> None:
        messages.send(self._connection, message)


def main(
    *,
    engine_class: type[Engine] = Engine,
    load_denoiser: Callable[[argparse.Namespace], Denoiser] = load,
) -> None:
    """Runs until the front says stop or is gone.

    Args:
        engine_class: Another way to schedule, to compare with.
        load_denoiser: What is served, from the front's options.
    """
    connection = socket.socket(fileno=int(sys.argv[1]))
    ring = RingWriter(int(sys.argv[2]))
    options = argparse.Namespace(**json.loads(sys.argv[3]))
    # Terminals and supervisors signal the whole group, but the front still has streams to finish.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    prepare_torch(options)
    process = EngineProcess(connection, ring)
    try:
        code = process.run(options, engine_class=engine_class, load_denoiser=load_denoiser)
    except (BrokenPipeError, ConnectionResetError):
        code = 1
    logging.shutdown()
    # Not by way of the interpreter's end, which would wait for threads that wait for the front.
    connection.shutdown(socket.SHUT_WR)
    os._exit(code)


if __name__ == "__main__":
    main()
