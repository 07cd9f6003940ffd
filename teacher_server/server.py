"""`teacher-server`: loads a denoiser, serves it, drains on SIGTERM.

Exit codes: 0 stopped as asked, 1 failed, 2 misused.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from masked_diffusion.families import Denoiser
from protos import channel, malloc, service

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)
from grpc_health.v1 import health, health_pb2_grpc  # isort: skip
from grpc_reflection.v1alpha import reflection  # isort: skip

from teacher_server import autotune, inspect_command, status
from teacher_server.arguments import load, parse_arguments, prepare_torch
from teacher_server.config import AutotuneConfig, EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.engine_group import EngineGroup
from teacher_server.engine.host import EngineHost
from teacher_server.engine.launch import LaunchedEngine, launch_engines
from teacher_server.engine.model_runner import DenoiserLostError
from teacher_server.engine.remote_engine import RemoteEngine
from teacher_server.facts import facts_of
from teacher_server.grpc_service import TeacherServicer
from teacher_server.options import read_options
from teacher_server.tensor_parallel import serve_in_ranks

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_MISUSED = 2
SWITCH_INTERVAL_S = 0.0002
"""How long one of our threads keeps the interpreter while another wants it."""
_MIN_GRACE_S = 1.0
_MAX_STEP_S = 60.0
"""Between two forwards, of the work on the first one's results. Other ranks hear of a forward
within this and the health interval, and of the end within the drain's time limit after the last."""


class TeacherServer:
    """One served denoiser: an engine, and the gRPC front before it."""

    def __init__(
        self,
        denoiser: Denoiser | LaunchedEngine,
        *,
        config: ServerConfig,
        engine_config: EngineConfig,
        limits: LimitsConfig,
        revision: str | None = None,
        engine_class: type[Engine] = Engine,
    ) -> None:
        """Makes a server that does not listen yet.

        Args:
            denoiser: What is served; or the engine that has it, in a process of its own.
            revision: `weights_digest` of the denoiser; None computes it.
            engine_class: Another way to schedule, to compare with.
        """
        self._config = config
        self._failed = False
        self._lock = threading.Lock()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that serves; None before and after."""
        self._stop_requested = asyncio.Event()
        self.port = 0
        self.engine: EngineHost
        if isinstance(denoiser, RemoteEngine | EngineGroup):
            self._facts = denoiser.facts
            denoiser.on_dead = self._on_engine_death
            self.engine = denoiser
        else:
            self._facts = facts_of(denoiser, revision=revision)
            self.engine = engine_class(
                denoiser,
                engine_config,
                revision=self._facts.revision,
                on_dead=self._on_engine_death,
            )
        self._servicer = TeacherServicer(
            self._facts, self.engine, engine_config=engine_config, limits=limits
        )

    async def serve(self, *, on_ready: "threading.Event | None" = None) -> bool:
        """Serves until `request_stop`; True when it ended as asked.

        Raises:
            OSError: the address cannot be listened on.
        """
        server = grpc.aio.server(options=channel.SERVER_OPTIONS)
        health_servicer = self._add_services(server)
        with self._attached_to_loop():
            try:
                self.engine.start()
                self.port = _listen(server, self._config.listen)
                await status.set_health(self.engine, health_servicer)
                await server.start()
                self._announce()
                if on_ready is not None:
                    on_ready.set()
                async with self._watching(health_servicer):
                    await self._stop_requested.wait()
                    await self._drain(server, health_servicer)
            finally:
                await asyncio.to_thread(self.engine.stop)
                await server.stop(grace=None)
        return not self._failed

    def request_stop(self) -> None:
        """Starts draining; from any thread, at any time."""
        with self._lock:
            self._stopping = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stop_requested.set)

    @contextlib.contextmanager
    def _attached_to_loop(self) -> Iterator[None]:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._stopping:
                self._stop_requested.set()
        try:
            yield
        finally:
            with self._lock:
                self._loop = None

    def _add_services(self, server: grpc.aio.Server) -> health.aio.HealthServicer:
        service.add_to_server(self._servicer, server)
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        names = (status.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return health_servicer

    @contextlib.asynccontextmanager
    async def _watching(self, health_servicer: health.aio.HealthServicer) -> AsyncIterator[None]:
        """Keeps health and the status line going during the block."""
        tasks = [asyncio.create_task(status.keep_health(self.engine, health_servicer))]
        interval_s = self._config.status_interval_s
        if interval_s:
            tasks.append(asyncio.create_task(status.log_status(self.engine, interval_s=interval_s)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _drain(
        self, server: grpc.aio.Server, health_servicer: health.aio.HealthServicer
    ) -> None:
        started_s = time.monotonic()
        timeout_s = self._config.drain_timeout_s
        await health_servicer.enter_graceful_shutdown()
        drained = await asyncio.to_thread(self.engine.drain, timeout_s=timeout_s)
        # Ends the streams that are left with UNAVAILABLE, which clients resume elsewhere.
        await asyncio.to_thread(self.engine.stop)
        left_s = timeout_s - (time.monotonic() - started_s)
        await server.stop(grace=max(_MIN_GRACE_S, left_s))
        logger.info("stopped drained=%s seconds=%.1f", drained, time.monotonic() - started_s)

    def _on_engine_death(self, error: BaseException) -> None:
        self._failed = True
        self.request_stop()

    def _announce(self) -> None:
        info = self._facts.info
        address = f"{self._config.listen.rpartition(':')[0]}:{self.port}"
        logger.info(
            "ready address=%s model=%s family=%s num_params=%d vocab_size=%d mask_token_id=%d "
            "max_length=%d device=%s dtype=%s",
            address,
            info.name,
            info.family,
            info.num_parameters,
            info.vocab_size,
            info.mask_token_id,
            info.max_length,
            self._facts.device,
            self._facts.dtype,
        )
        # The one line on standard output: whoever started us reads the address from it.
        print(f"teacher-server listening on {address}", flush=True)


def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(
            f"listen address {address} is taken or cannot be bound; choose another port or stop "
            "what listens there"
        ) from error
    return port


class _NoiseFilter(logging.Filter):
    """Drops gRPC's traceback for a caller that left while a message was on its way.

    Leaving is no failure, and the request's own line tells of it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("ExecuteBatchError raised in core")


def _stop_with_stdin(server: TeacherServer) -> None:
    """Waits for the end of standard input: the process that started us is gone."""
    # Not sys.stdin.read: a thread that waits in there aborts the interpreter's shutdown. A terminal
    # that hung up is an OSError.
    with contextlib.suppress(OSError):
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
    server.request_stop()


async def _run(server: TeacherServer, config: ServerConfig) -> bool:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    if config.exit_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    return await server.serve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server until it is told to stop, or a subcommand; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) == ["inspect"]:
        return inspect_command.main(arguments[1:])
    options = parse_arguments(arguments)
    malloc.keep_freed_memory()
    try:
        logging.basicConfig(
            level=os.environ.get("LOG_LEVEL", "INFO"),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
            stream=sys.stderr,
        )
        logging.getLogger("grpc._cython.cygrpc").addFilter(_NoiseFilter())
        config = read_options(options, ServerConfig)
        engine_config = read_options(options, EngineConfig)
        limits = read_options(options, LimitsConfig)
        read_options(options, AutotuneConfig)
    except ValueError as error:
        print(f"teacher-server: {error}", file=sys.stderr)
        return EXIT_MISUSED

    def serve(
        served: Denoiser | LaunchedEngine, tuned: EngineConfig, revision: str | None = None
    ) -> bool:
        server = TeacherServer(
            served, config=config, engine_config=tuned, limits=limits, revision=revision
        )
        return asyncio.run(_run(server, config))

    def serve_here(denoiser: Denoiser, revision: str | None = None) -> bool:
        tuned, revision = autotune.tuned(denoiser, options, revision=revision)
        return serve(denoiser, tuned, revision)

    try:
        if not (options.tensor_parallel or config.engine_in_process):
            launched = launch_engines(options, engine_config)
            return 0 if serve(launched, engine_config) else EXIT_FAILED
        # Every operation of the engine's thread takes the interpreter's lock anew: it must not
        # wait 5 ms for it whenever the front is at work.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        prepare_torch(options)
        if not options.tensor_parallel:
            return 0 if serve_here(load(options)) else EXIT_FAILED
        ended_as_asked = serve_in_ranks(
            lambda: load(options),
            serve_here,
            max_silence_s=_MAX_STEP_S + engine_config.health_interval_s + config.drain_timeout_s,
        )
        return 0 if ended_as_asked else EXIT_FAILED
    except (ValueError, OSError, DenoiserLostError) as error:
        print(f"teacher-server: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
