"""`python -m tests.bench.serving_client JSON`: a client with always two requests in flight."""

import json
import sys
import threading

from protos import channel as channel_options
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc
from tests.bench import cores
from tests.bench.serving_mix import Mix

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

IN_FLIGHT = 2


def main() -> None:
    """Asks until its standard input ends."""
    cores.pin(max)
    options = json.loads(sys.argv[1])
    mix = Mix(**options["mix"])
    with grpc.insecure_channel(
        options["address"], options=channel_options.CLIENT_OPTIONS
    ) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        stop = threading.Event()
        threads = [
            threading.Thread(target=_ask, args=(stub, mix, first, stop))
            for first in range(IN_FLIGHT)
        ]
        for thread in threads:
            thread.start()
        print("asking", flush=True)
        sys.stdin.read()
        stop.set()
    for thread in threads:
        thread.join()


def _ask(
    stub: teacher_pb2_grpc.TeacherServiceStub, mix: Mix, first: int, stop: threading.Event
) -> None:
    index = first
    while not stop.is_set():
        request = mix.request(index)
        is_score = isinstance(request, pb.ScoreStatesRequest)
        call = (stub.ScoreStates if is_score else stub.SampleTrajectories)(request)
        try:
            for _ in call:
                pass
        except (grpc.RpcError, ValueError):  # the channel was closed under it
            if not stop.is_set():
                raise
        index += IN_FLIGHT


if __name__ == "__main__":
    main()
