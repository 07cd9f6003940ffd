"""`python -m tests.bench.load_server JSON`: several teacher servers in one process, one for an arm.

Prints the address of each arm as JSON, then for each line, which names an arm, that arm's counters.
Each engine is a thread on the device's core; fronts have the other. Arms that nobody asks are idle,
so a process serves all that take turns: it starts once, and what a process has by chance (its
memory's layout, its place in the caches) is the same for all.
"""

import asyncio
import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.engine import Engine
from teacher_server.server import SWITCH_INTERVAL_S, TeacherServer
from tests.bench import cores, serving_model
from tests.bench.baselines.admission_by_size import SizeAdmissionEngine
from tests.bench.baselines.cohort_waiting import CohortWaitingEngine

_READY_TIMEOUT_S = 60.0
_CORES = cores.allowed()


class _TimedEngine(Engine):
    """Keeps its thread on the device's core, and tells that thread's processor time."""

    clock_id: int | None = None

    def _run(self) -> None:
        torch.set_num_threads(1)
        cores.pin_among(min, _CORES)
        self.clock_id = time.pthread_getcpuclockid(threading.get_ident())
        super()._run()


class _TimedSizeAdmission(SizeAdmissionEngine, _TimedEngine):
    """Likewise."""


class _TimedCohortWaiting(CohortWaitingEngine, _TimedEngine):
    """Likewise."""


_ENGINES: dict[str, type[_TimedEngine]] = {
    "step": _TimedEngine,
    "admission by size": _TimedSizeAdmission,
    "cohort": _TimedCohortWaiting,
}


def main() -> None:
    """Serves until its standard input ends."""
    options = json.loads(sys.argv[1])
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    cores.pin(max)
    _TimedCohortWaiting.num_cohort_rows = options.get("num_cohort_rows", 0)
    size = serving_model.ModelSize(**options["size"])
    servers = {name: _server(size, **arm) for name, arm in options["arms"].items()}
    ready = {name: threading.Event() for name in servers}
    threading.Thread(target=_answer, args=(servers, ready), daemon=True).start()
    # Servers print where they listen; standard output is for the answers alone.
    with contextlib.redirect_stdout(sys.stderr):
        asyncio.run(_serve(servers, ready))


def _server(size: serving_model.ModelSize, *, engine: str, config: dict[str, Any]) -> TeacherServer:
    return TeacherServer(
        serving_model.build(size),
        config=ServerConfig(listen="127.0.0.1:0", drain_timeout_s=0.0, status_interval_s=0.0),
        engine_config=EngineConfig(**config),
        limits=LimitsConfig(),
        revision="bench",
        engine_class=_ENGINES[engine],
    )


async def _serve(
    servers: Mapping[str, TeacherServer], ready: Mapping[str, threading.Event]
) -> None:
    await asyncio.gather(*(server.serve(on_ready=ready[name]) for name, server in servers.items()))


def _answer(servers: Mapping[str, TeacherServer], ready: Mapping[str, threading.Event]) -> None:
    for event in ready.values():
        assert event.wait(_READY_TIMEOUT_S)
    _say({name: f"127.0.0.1:{server.port}" for name, server in servers.items()})
    for line in sys.stdin:
        engine = servers[line.strip()].engine
        assert isinstance(engine, _TimedEngine) and engine.clock_id is not None
        clocks = {
            "now_s": time.monotonic(),
            "cpu_s": time.process_time(),
            "engine_cpu_s": time.clock_gettime(engine.clock_id),
        }
        _say(dataclasses.asdict(engine.snapshot()) | clocks)
    for server in servers.values():
        server.request_stop()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True, file=sys.__stdout__)


if __name__ == "__main__":
    main()
