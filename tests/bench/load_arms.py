"""A `load_server` and what its arms counted."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.processes import Child
from tests.bench.serving_model import ModelSize


@dataclass(frozen=True, kw_only=True)
class LoadArms:
    """A server with an address for each arm."""

    server: Child
    addresses: Mapping[str, str]

    def counters(self, arm: str) -> dict[str, float]:
        """Totals of one arm, and clocks: `cpu_s` of the process, `engine_cpu_s` of its engine."""
        self.server.tell(arm)
        answer: dict[str, Any] = json.loads(self.server.first_line())
        return {name: value for name, value in answer.items() if isinstance(value, int | float)}

    @contextlib.contextmanager
    def counting(self, arm: str) -> Iterator[dict[str, float]]:
        """Gives a dict that holds, after the block, by how much each total rose."""
        rose: dict[str, float] = {}
        before = self.counters(arm)
        yield rose
        rose.update({name: value - before[name] for name, value in self.counters(arm).items()})


@contextlib.contextmanager
def serve(
    size: ModelSize, arms: Mapping[str, Mapping[str, Any]], *, num_cohort_rows: int = 0
) -> Iterator[LoadArms]:
    """Serves all arms during the block, from one process.

    Args:
        arms: for each, the kind of `engine` and the `config` of it.
    """
    options = {
        "size": size.as_json(),
        "arms": {name: dict(arm) for name, arm in arms.items()},
        "num_cohort_rows": num_cohort_rows,
    }
    with Child("tests.bench.load_server", options) as server:
        yield LoadArms(server=server, addresses=json.loads(server.first_line()))
