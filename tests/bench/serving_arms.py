"""The processes of the serving bench, all started at once; each works only while it is its turn."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.bench.processes import Child
from tests.bench.serving_model import ModelSize

NUM_CLIENTS = 8


class Clients:
    """Processes that each have two requests in flight at the server that is asked."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    def ask(self, address: str, *, is_original: bool = False) -> None:
        """Lets all of them ask this server from now on."""
        self._tell({"address": address, "is_original": is_original})

    def stop(self) -> None:
        """Ends what is in flight."""
        self._tell(None)

    def _tell(self, task: dict[str, Any] | None) -> None:
        for child in self._children:
            child.tell(json.dumps(task))
        for child in self._children:
            assert child.first_line() == "told"


@contextlib.contextmanager
def start_clients(size: ModelSize) -> Iterator[Clients]:
    """Clients that ask nobody yet."""
    with contextlib.ExitStack() as stack:
        mixes = [
            {"vocab_size": size.vocab_size, "max_length": size.max_length, "seed": seed}
            for seed in range(NUM_CLIENTS)
        ]
        children = [stack.enter_context(Child("tests.bench.serving_client", mix)) for mix in mixes]
        for child in children:
            assert child.first_line() == "ready"
        yield Clients(children)


@contextlib.contextmanager
def clients(address: str, size: ModelSize, *, is_original: bool) -> Iterator[None]:
    """All clients ask during the block."""
    with start_clients(size) as started:
        started.ask(address, is_original=is_original)
        yield


def counters(server: Child) -> dict[str, Any]:
    """The totals of a `serving_server`, with its clock."""
    server.tell("counters")
    totals: dict[str, Any] = json.loads(server.first_line())
    return totals


class Arms:
    """Servers by the name of their batching, clients, and the bare model."""

    def __init__(self, servers: dict[str, Child], bare: Child, asking: Clients) -> None:
        self._servers = servers
        self._addresses = {
            name: server.first_line().rpartition(" ")[2] for name, server in servers.items()
        }
        self._bare = bare
        self._clients = asking
        assert bare.first_line() == "ready"

    def served(
        self, batching: str, *, window_s: float, is_original: bool = False
    ) -> dict[str, float]:
        """What a server's counters rose by while all clients asked it."""
        server = self._servers[batching]
        self._clients.ask(self._addresses[batching], is_original=is_original)
        time.sleep(window_s / 4)  # the first rounds of all clients come at once
        before = counters(server)
        time.sleep(window_s)
        after = counters(server)
        self._clients.stop()
        rose = {
            name: after[name] - before[name]
            for name in after
            if isinstance(after[name], int | float)
        }
        return rose | {"seconds": rose["now_s"]}

    def bare(self, **task: Any) -> dict[str, Any]:
        """What the process of `serving_bare` answers."""
        self._bare.tell(json.dumps(task))
        answer: dict[str, Any] = json.loads(self._bare.first_line(timeout_s=600.0))
        return answer


@contextlib.contextmanager
def start_arms(
    size: ModelSize, batchings: Sequence[str], *, max_batch_tokens: int
) -> Iterator[Arms]:
    """All arms of one model."""
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                Child(
                    "tests.bench.serving_server",
                    {
                        "size": size.as_json(),
                        "batching": name,
                        "max_batch_tokens": max_batch_tokens,
                    },
                )
            )
            for name in batchings
        }
        bare = stack.enter_context(Child("tests.bench.serving_bare", size.as_json()))
        yield Arms(servers, bare, stack.enter_context(start_clients(size)))
