"""`python -m tests.bench.serving_server JSON`: a teacher server whose engine has a core of its own.

Prints its address, then a line of counters for every line that it is given.
"""

import asyncio
import dataclasses
import json
import sys
import threading
import time

import psutil
import torch

from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.engine import Engine
from teacher_server.server import SWITCH_INTERVAL_S, TeacherServer
from tests.bench import cores, serving_model
from tests.bench.baselines.cohort_waiting import CohortWaitingEngine
from tests.bench.baselines.request_batching import PaddedQwen2, RequestBatchingEngine


class _PinnedEngine(Engine):
    """Keeps its thread on the device's core; the front stays on the other."""

    def _run(self) -> None:
        torch.set_num_threads(1)
        cores.pin_among(min, self.allowed_cores)
        super()._run()

    allowed_cores: frozenset[int] = frozenset()


class _PinnedRequestBatching(RequestBatchingEngine, _PinnedEngine):
    """Likewise."""


class _PinnedCohortWaiting(CohortWaitingEngine, _PinnedEngine):
    """Likewise."""


_ENGINES: dict[str, type[Engine]] = {
    "request": _PinnedRequestBatching,
    "cohort": _PinnedCohortWaiting,
}


def main() -> None:
    """Serves until its standard input ends."""
    options = json.loads(sys.argv[1])
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _PinnedEngine.allowed_cores = cores.allowed()
    cores.pin(max)
    _PinnedCohortWaiting.num_cohort_rows = options.get("num_cohort_rows", 0)
    denoiser = serving_model.build(serving_model.ModelSize(**options["size"]))
    is_baseline = options["batching"] == "request"
    if is_baseline:
        denoiser = PaddedQwen2(
            denoiser.model, None, name="bench", mask_token_id=denoiser.info.mask_token_id
        ).eval()
    server = TeacherServer(
        denoiser,
        config=ServerConfig(listen="127.0.0.1:0", drain_timeout_s=0.0, status_interval_s=0.0),
        engine_config=EngineConfig(
            max_batch_tokens=options["max_batch_tokens"], **options.get("engine", {})
        ),
        limits=LimitsConfig(),
        revision="bench",
        engine_class=_ENGINES.get(options["batching"], _PinnedEngine),
    )
    threading.Thread(target=_answer, args=(server,), daemon=True).start()
    asyncio.run(server.serve())


def _answer(server: TeacherServer) -> None:
    for _ in sys.stdin:
        counters = dataclasses.asdict(server.engine.snapshot())
        print(json.dumps(counters | _clocks()), flush=True)
    server.request_stop()


def _clocks() -> dict[str, float]:
    this = psutil.Process()
    processes = [this, *this.children(recursive=True)]
    cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes)
    return {"now_s": time.monotonic(), "cpu_s": cpu_s}


if __name__ == "__main__":
    main()
