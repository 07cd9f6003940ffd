"""`python -m tests.bench.serving_client JSON`: a client with always two requests in flight.

Reads lines of JSON: an address to ask from then on, or null to stop; answers each with a line, once
the calls before have ended. The argument is the `Mix`; a line may change `is_original`.
"""

import dataclasses
import json
import sys
import threading

from protos import channel as channel_options
from protos import teacher_pb2 as pb
from protos.service import TeacherStub
from tests.bench import cores
from tests.bench.serving_mix import Mix

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

IN_FLIGHT = 2


class Asking:
    """Asks one server until it is closed."""

    def __init__(self, address: str, mix: Mix) -> None:
        self._channel = grpc.insecure_channel(address, options=channel_options.CLIENT_OPTIONS)
        self._stub = TeacherStub(self._channel)
        self._mix = mix
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(first,)) for first in range(IN_FLIGHT)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Cancels what is in flight."""
        self._stop.set()
        self._channel.close()
        for thread in self._threads:
            thread.join()

    def _ask(self, first: int) -> None:
        index = first
        while not self._stop.is_set():
            request = self._mix.request(index)
            is_score = isinstance(request, pb.ScoreStatesRequest)
            try:
                call = (self._stub.ScoreStates if is_score else self._stub.SampleTrajectories)(
                    request
                )
                for _ in call:
                    pass
            except (grpc.RpcError, ValueError):  # the channel was closed under it
                if not self._stop.is_set():
                    raise
            index += IN_FLIGHT


def main() -> None:
    """Asks as it is told until its standard input ends."""
    cores.pin(max)
    mix = Mix(**json.loads(sys.argv[1]))
    asking: Asking | None = None
    print("ready", flush=True)
    for line in sys.stdin:
        if asking is not None:
            asking.close()
        task = json.loads(line)
        asking = None
        if task is not None:
            own = dataclasses.replace(mix, is_original=task["is_original"])
            asking = Asking(task["address"], own)
        print("told", flush=True)
    if asking is not None:
        asking.close()


if __name__ == "__main__":
    main()
