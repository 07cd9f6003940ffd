"""`python -m tests.bench.serving_server JSON`: a teacher server whose engine has a core of its own.

Prints its address, then a line of counters for every line that it is given.
"""

import asyncio
import dataclasses
import json
import sys
import threading
import time

from protos import malloc
from teacher_server.arguments import parse_arguments
from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.remote_engine import RemoteEngine
from teacher_server.server import TeacherServer
from tests.bench import cores


def main() -> None:
    """Serves until its standard input ends."""
    bench = json.loads(sys.argv[1])
    malloc.keep_freed_memory()
    engine_config = EngineConfig(max_batch_tokens=bench["max_batch_tokens"])
    options = parse_arguments(["--model=none", "--num-threads=1"])
    vars(options).update(dataclasses.asdict(engine_config))
    options.bench = bench | {"cores": sorted(cores.allowed())}
    # The engine's process takes the other core by itself.
    cores.pin(max)
    server = TeacherServer(
        RemoteEngine.launch(options, engine_config, module="tests.bench.serving_engine"),
        config=ServerConfig(listen="127.0.0.1:0", drain_timeout_s=0.0, status_interval_s=0.0),
        engine_config=engine_config,
        limits=LimitsConfig(),
    )
    threading.Thread(target=_answer, args=(server,), daemon=True).start()
    asyncio.run(server.serve())


def _answer(server: TeacherServer) -> None:
    for _ in sys.stdin:
        counters = dataclasses.asdict(server.engine.snapshot())
        print(json.dumps(counters | {"now_s": time.monotonic()}), flush=True)
    server.request_stop()


if __name__ == "__main__":
    main()
