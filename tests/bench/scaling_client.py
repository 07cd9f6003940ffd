"""`python -m tests.bench.scaling_client JSON`: clients of servers, each with its own connection.

Reads a JSON task a line, with the `address` of its server, from its standard input and prints one
line of JSON when it is through:

- "clients": `num_clients` clients share `num_requests` requests, `num_in_flight` each at a time.
- "ranks": `num_ranks` ranks ask once a step, at jittered moments, and meet after each step;
  prints `step_s`, from the moment that the last rank asked to the last answer.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import numpy as np

from protos import channel as channel_options
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc
from tests.bench import cores

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

ROWS = 2
_LENGTHS = (16, 48, 80, 112)
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
_TARGETS = pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_F16)
Stub = teacher_pb2_grpc.TeacherServiceStub


@contextlib.asynccontextmanager
async def _stubs(address: str, count: int) -> AsyncIterator[list[Stub]]:
    options = [*channel_options.CLIENT_OPTIONS, _OWN_CONNECTION]
    async with contextlib.AsyncExitStack() as stack:
        stubs = [
            Stub(await stack.enter_async_context(grpc.aio.insecure_channel(address, options)))
            for _ in range(count)
        ]
        await asyncio.gather(*(stub.DescribeTeacher(pb.DescribeTeacherRequest()) for stub in stubs))
        yield stubs


async def clients(
    address: str,
    *,
    vocab_size: int,
    num_clients: int,
    num_in_flight: int,
    num_requests: int,
    num_steps: int,
    every_n_steps: int,
    length: int = 0,
) -> None:
    """Asks for trajectories until all are done.

    Args:
        every_n_steps: steps from one capture to the next.
        length: of every row; 0 = a few lengths in turn, the same for any number of clients.
    """
    indices = iter(range(num_requests))

    async def ask(stub: Stub, client: int) -> None:
        for index in indices:
            async for _ in stub.SampleTrajectories(
                _trajectories(
                    index,
                    client,
                    states=_states(index, vocab_size, _lengths(index, length)),
                    num_steps=num_steps,
                    every_n_steps=every_n_steps,
                )
            ):
                pass

    async with _stubs(address, num_clients) as stubs:
        await asyncio.gather(
            *(ask(stub, client) for client, stub in enumerate(stubs) for _ in range(num_in_flight))
        )


async def ranks(
    address: str, *, vocab_size: int, num_ranks: int, num_steps: int, length: int, jitter_s: float
) -> list[float]:
    """Seconds from each step's last request to its last answer."""
    random = np.random.default_rng(0)
    times_s = []

    async def ask(stub: Stub, rank: int, step: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        request = pb.ScoreStatesRequest(
            context=pb.RequestContext(
                client_id=f"rank{rank}",
                cohort=pb.CohortHint(run_id="run", step=step, num_requests=num_ranks),
            ),
            states=_states(step * num_ranks + rank, vocab_size, itertools.repeat(length)),
            targets=_TARGETS,
        )
        async for _ in stub.ScoreStates(request):
            pass

    async with _stubs(address, num_ranks) as stubs:
        for step in range(num_steps):
            delays_s = random.uniform(0, jitter_s, num_ranks)
            started_s = time.monotonic()
            await asyncio.gather(
                *(ask(stub, rank, step, delays_s[rank]) for rank, stub in enumerate(stubs))
            )
            times_s.append(time.monotonic() - started_s - float(delays_s.max()))
    return times_s


def _states(seed: int, vocab_size: int, lengths: Iterator[int]) -> pb.Sequences:
    random = np.random.default_rng(seed)
    states = []
    for length in itertools.islice(lengths, ROWS):
        ids = random.integers(3, vocab_size - 1, length).astype("<i4")
        ids[random.permutation(np.arange(1, length))[: length * 7 // 8]] = vocab_size - 1
        states.append(ids)
    return pb.Sequences(
        sequence_ids=range(ROWS),
        lengths=[len(ids) for ids in states],
        token_ids=b"".join(ids.tobytes() for ids in states),
    )


def _lengths(index: int, length: int) -> Iterator[int]:
    if length:
        return itertools.repeat(length)
    return itertools.islice(itertools.cycle(_LENGTHS), index % len(_LENGTHS), None)


def _trajectories(
    index: int, client: int, *, states: pb.Sequences, num_steps: int, every_n_steps: int
) -> pb.SampleTrajectoriesRequest:
    return pb.SampleTrajectoriesRequest(
        context=pb.RequestContext(client_id=f"client{client}"),
        start_states=states,
        seeds=[ROWS * index + row for row in range(ROWS)],
        sampler=pb.SamplerSpec(
            algorithm=pb.ALGORITHM_P2, num_steps=num_steps, temperature=0.7, alg_temp=0.5
        ),
        capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=every_n_steps),
        targets=_TARGETS,
    )


_TASKS: dict[str, Callable[..., Coroutine[Any, Any, object]]] = {
    "clients": clients,
    "ranks": ranks,
}


def main() -> None:
    """Runs tasks until its standard input ends."""
    cores.pin(max)
    options = json.loads(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        answer: object = asyncio.run(_TASKS[task.pop("task")](**options, **task))
        print(json.dumps({"step_s": answer}), flush=True)


if __name__ == "__main__":
    main()
