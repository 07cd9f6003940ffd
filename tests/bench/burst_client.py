"""`python -m tests.bench.burst_client`: many trajectories at once, each with a deadline.

Reads a JSON task a line from its standard input and prints JSON: of each call its status, whether a
refusal carried gRPC's retry hint, and milliseconds.
"""

import asyncio
import json
import sys
import time

import numpy as np

from protos import channel as channel_options
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc
from tests.bench import cores

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

NUM_CLIENTS = 8
# So many steps that a queue in tokens admits many times what a step takes, and that a trajectory's
# end is known long before it comes. Several rows: calls cost the one client a millisecond each.
ROWS, LENGTH, NUM_STEPS = 8, 64, 6
_RETRY_HINT = "grpc-retry-pushback-ms"


async def burst(
    address: str, *, vocab_size: int, num_requests: int, timeouts_s: list[float]
) -> list[dict]:
    """Asks all at once; the timeouts go round."""
    async with grpc.aio.insecure_channel(
        address, options=channel_options.CLIENT_OPTIONS
    ) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        await stub.DescribeTeacher(pb.DescribeTeacherRequest())  # connects
        return await asyncio.gather(
            *(
                _ask(stub, _request(index, vocab_size), timeouts_s[index % len(timeouts_s)])
                for index in range(num_requests)
            )
        )


def _request(index: int, vocab_size: int) -> pb.SampleTrajectoriesRequest:
    ids = np.random.default_rng(index).integers(3, vocab_size - 1, (ROWS, LENGTH)).astype("<i4")
    ids[:, 1::2] = vocab_size - 1
    return pb.SampleTrajectoriesRequest(
        context=pb.RequestContext(client_id=f"burst{index % NUM_CLIENTS}"),
        start_states=pb.Sequences(
            sequence_ids=range(ROWS), lengths=[LENGTH] * ROWS, token_ids=ids.tobytes()
        ),
        seeds=range(ROWS),
        sampler=pb.SamplerSpec(
            algorithm=pb.ALGORITHM_P2, num_steps=NUM_STEPS, temperature=0.7, alg_temp=0.5
        ),
        capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=2),
        targets=pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_F16),
    )


async def _ask(
    stub: teacher_pb2_grpc.TeacherServiceStub,
    request: pb.SampleTrajectoriesRequest,
    timeout_s: float,
) -> dict:
    started_s, status, has_hint = time.monotonic(), "OK", False
    try:
        async for _ in stub.SampleTrajectories(request, timeout=timeout_s):
            pass
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        has_hint = any(key == _RETRY_HINT for key, _ in error.trailing_metadata())
    return {
        "status": status,
        "has_hint": has_hint,
        "time_ms": 1e3 * (time.monotonic() - started_s),
    }


def main() -> None:
    """Runs the bursts that it is told of until its standard input ends."""
    cores.pin(max)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps({"calls": asyncio.run(burst(**json.loads(line)))}), flush=True)


if __name__ == "__main__":
    main()
