"""`python -m tests.bench.latency_probe JSON`: a light client, or a health check, that times calls.

Asks at random moments until its standard input ends, then prints JSON: milliseconds of each call.
`what` is "score", a single state of a few lengths, or "health", grpc.health.v1. Each thread has a
connection and a client id of its own.
"""

import concurrent.futures
import json
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from protos import channel as channel_options
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc
from tests.bench import cores

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)
from grpc_health.v1 import health_pb2  # isort: skip

# Else channels of one address share a connection.
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
_SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name
Ask = Callable[[], None]


def main() -> None:
    """Asks until its standard input ends."""
    cores.pin(max)
    options = json.loads(sys.argv[1])
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(options["num_threads"]) as pool:
        probes = [
            pool.submit(_probe, options, seed, stop) for seed in range(options["num_threads"])
        ]
        print("asking", flush=True)
        sys.stdin.read()
        stop.set()
    print(json.dumps({"times_ms": [time_ms for probe in probes for time_ms in probe.result()]}))


def _probe(options: dict, seed: int, stop: threading.Event) -> list[float]:
    times_ms: list[float] = []
    random = np.random.default_rng(seed)
    with grpc.insecure_channel(
        options["address"], options=[*channel_options.CLIENT_OPTIONS, _OWN_CONNECTION]
    ) as channel:
        ask = _ASKS[options["what"]](channel, options, seed)
        ask()  # connects
        # Random pauses: a closed loop would always come right after a step.
        while not stop.wait(random.exponential(options["mean_pause_s"])):
            started_s = time.monotonic()
            ask()
            times_ms.append(1e3 * (time.monotonic() - started_s))
    return times_ms


def _score(channel: grpc.Channel, options: dict, seed: int) -> Ask:
    stub = teacher_pb2_grpc.TeacherServiceStub(channel)
    random = np.random.default_rng([seed, 1])

    def ask() -> None:
        ids = _state(random, options["vocab_size"])
        request = pb.ScoreStatesRequest(
            context=pb.RequestContext(client_id=f"probe{seed}"),
            states=pb.Sequences(sequence_ids=[0], lengths=[len(ids)], token_ids=ids.tobytes()),
            targets=pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_F16),
        )
        for _ in stub.ScoreStates(request):
            pass

    return ask


def _state(random: np.random.Generator, vocab_size: int) -> np.ndarray:
    ids = random.integers(3, vocab_size - 1, random.integers(32, 129)).astype("<i4")
    ids[1::2] = vocab_size - 1
    return ids


def _health(channel: grpc.Channel, options: dict, seed: int) -> Ask:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )

    def ask() -> None:
        answer = check(health_pb2.HealthCheckRequest(service=_SERVICE), timeout=30.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    return ask


_ASKS = {"score": _score, "health": _health}


if __name__ == "__main__":
    main()
