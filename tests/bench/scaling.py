"""What a useful position costs the server as clients and steps grow, and what cohorts could gain.

- `cost_growth_clients`: 1 to 64 clients, each with a connection of its own, share the same
  requests (short trajectories of mixed lengths, the same in every arm). One client alone fills the
  token budget, so that the curve shows what clients cost and not what fuller batches gain.
- `cost_growth_steps`: trajectories of 8 to 256 steps over rows of one length, all with the same
  number of steps altogether. A target every fourth step, so that a token of a forward comes with
  as many positions of the head and of targets in each arm.
- `cost_growth`: the larger one. A growth is the steepest rise along a curve, from any point to any
  later one; falling is none. A cost is processor time of the whole server, engine and front, a
  token of its forwards. It is shown a target position too, which compares arms of clients only: the
  first capture of a trajectory has the most positions, and weighs more in a short one.
- `cohort_fill_gain`, `cohort_step_time_ratio`: eight ranks ask at moments spread over half a
  forward of all of them; rows a forward, and time from the last rank's request to the last answer,
  of an engine that waits for the ranks over those of one that never does. The waiting one
  (`baselines/cohort_waiting.py`) knows the number of rows, and nobody else asks: the most that the
  hint can give.
"""

import contextlib
import json
import statistics
from collections.abc import Iterator
from typing import Any, TypedDict

from matplotlib.figure import Figure

from tests.bench import serving_arms
from tests.bench.processes import Child
from tests.bench.scaling_client import ROWS
from tests.bench.serving_model import SIZES, ModelSize

_SMALL = ModelSize(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
)
_BATCH_TOKENS = 256
_NUM_RANKS = 8
_RANK_LENGTH = 64


class Cost(TypedDict):
    """Of one arm, microseconds of the server's processor time."""

    us_per_token: float
    us_per_position: float
    engine_us_per_token: float
    """Time of the engine's steps by the clock: what others do on its core counts too."""
    rows_per_forward: float


class Cohort(TypedDict):
    """Of eight ranks."""

    rows_per_forward: float
    tokens_per_forward: float
    step_ms: float


class Result(TypedDict):
    """Arms by their number of clients or steps."""

    cost_growth: float
    cost_growth_clients: float
    cost_growth_steps: float
    cohort_fill_gain: float
    cohort_step_time_ratio: float
    clients: dict[str, Cost]
    steps: dict[str, Cost]
    cohort: dict[str, Cohort]


def run(*, quick: bool) -> Result:
    """Measures a small model; without `quick` the demo's, all arms, three times."""
    if quick:
        return measure(_SMALL, num_clients=(1, 8, 64), num_steps=(8, 128), num_requests=128)
    return measure(
        SIZES["demo"],
        num_clients=(1, 2, 4, 8, 16, 32, 64),
        num_steps=(8, 16, 32, 64, 128, 256),
        num_requests=256,
        num_rounds=3,
    )


def measure(
    size: ModelSize,
    *,
    num_clients: tuple[int, ...],
    num_steps: tuple[int, ...],
    num_requests: int,
    num_rounds: int = 1,
) -> Result:
    """Measures one model; arms take turns within a round.

    Args:
        num_requests: of each arm of clients.
    """
    by_clients: dict[str, list[Cost]] = {str(count): [] for count in num_clients}
    by_steps: dict[str, list[Cost]] = {str(count): [] for count in num_steps}
    with _server_and_client(size, "step", max_batch_tokens=_BATCH_TOKENS) as (server, client):
        _ask(client, {"task": "clients", "num_clients": 2, "num_requests": 16, "num_steps": 4})
        for _ in range(num_rounds):
            for count in num_clients:
                task = {"num_clients": count, "num_requests": num_requests, "num_steps": 4}
                by_clients[str(count)].append(_cost(server, client, task))
            for count in num_steps:
                task = {
                    "num_clients": 1,
                    "num_requests": max(num_steps) // count,
                    "num_steps": count,
                    "length": max(64, 5 * max(num_steps) // 4),
                }
                by_steps[str(count)].append(_cost(server, client, task))
    clients = {name: _median(costs) for name, costs in by_clients.items()}
    steps = {name: _median(costs) for name, costs in by_steps.items()}
    cohort = _cohorts(size, num_rounds=3 * num_rounds)
    never, waits = cohort["never waits"], cohort["waits"]
    growth = {"clients": _growth(clients), "steps": _growth(steps)}
    return {
        "cost_growth": max(growth.values()),
        "cost_growth_clients": growth["clients"],
        "cost_growth_steps": growth["steps"],
        "cohort_fill_gain": waits["rows_per_forward"] / never["rows_per_forward"],
        "cohort_step_time_ratio": waits["step_ms"] / never["step_ms"],
        "clients": clients,
        "steps": steps,
        "cohort": cohort,
    }


@contextlib.contextmanager
def _server_and_client(
    size: ModelSize, batching: str, *, max_batch_tokens: int = 8192
) -> Iterator[tuple[Child, Child]]:
    options = {
        "size": size.as_json(),
        "batching": batching,
        "max_batch_tokens": max_batch_tokens,
        "num_cohort_rows": ROWS * _NUM_RANKS,
    }
    with Child("tests.bench.serving_server", options) as server:
        address = server.first_line().rpartition(" ")[2]
        task = {"address": address, "vocab_size": size.vocab_size}
        with Child("tests.bench.scaling_client", task) as client:
            assert client.first_line() == "ready"
            yield server, client


def _ask(client: Child, task: dict[str, Any]) -> list[float]:
    client.tell(json.dumps(task))
    answer: list[float] = json.loads(client.first_line())["step_s"]
    return answer


def _cost(server: Child, client: Child, task: dict[str, Any]) -> Cost:
    before = serving_arms.counters(server)
    _ask(client, {"task": "clients", **task})
    after = serving_arms.counters(server)
    rose = {
        name: after[name] - before[name] for name in after if isinstance(after[name], int | float)
    }
    return {
        "us_per_token": 1e6 * rose["cpu_s"] / rose["num_forward_tokens"],
        "us_per_position": 1e6 * rose["cpu_s"] / rose["num_target_positions"],
        "engine_us_per_token": 1e6 * rose["busy_s"] / rose["num_forward_tokens"],
        "rows_per_forward": rose["num_forward_rows"] / rose["num_forwards"],
    }


def _median(costs: list[Cost]) -> Cost:
    return {
        name: statistics.median(cost[name] for cost in costs)  # type: ignore[literal-required]
        for name in costs[0]
    }  # type: ignore[return-value]


def _growth(costs: dict[str, Cost]) -> float:
    values = [cost["us_per_token"] for cost in costs.values()]
    return max(value / min(values[: index + 1]) for index, value in enumerate(values))


def _cohorts(size: ModelSize, *, num_rounds: int) -> dict[str, Cohort]:
    """Both engines in turn, at a jitter of half of what a step of all ranks at once takes."""
    task = {"task": "ranks", "num_ranks": _NUM_RANKS, "length": _RANK_LENGTH}
    taken: dict[str, list[Cohort]] = {"never waits": [], "waits": []}
    with contextlib.ExitStack() as stack:
        pairs = {
            name: stack.enter_context(_server_and_client(size, batching))
            for name, batching in (("never waits", "step"), ("waits", "cohort"))
        }
        for _, client in pairs.values():
            at_once_s = _ask(client, task | {"num_steps": 8, "jitter_s": 0.0})
        jittered = task | {"num_steps": 15, "jitter_s": statistics.median(at_once_s) / 2}
        for _ in range(num_rounds):
            for name, (server, client) in pairs.items():
                taken[name].append(_cohort(server, client, jittered))
    return {
        name: {
            "rows_per_forward": statistics.median(one["rows_per_forward"] for one in rounds),
            "tokens_per_forward": statistics.median(one["tokens_per_forward"] for one in rounds),
            "step_ms": statistics.median(one["step_ms"] for one in rounds),
        }
        for name, rounds in taken.items()
    }


def _cohort(server: Child, client: Child, task: dict[str, Any]) -> Cohort:
    before = serving_arms.counters(server)
    step_s = statistics.median(_ask(client, task))
    after = serving_arms.counters(server)
    forwards = after["num_forwards"] - before["num_forwards"]
    rows = after["num_forward_rows"] - before["num_forward_rows"]
    tokens = after["num_forward_tokens"] - before["num_forward_tokens"]
    return {
        "rows_per_forward": rows / forwards,
        "tokens_per_forward": tokens / forwards,
        "step_ms": 1e3 * step_s,
    }


def table(result: Result) -> str:
    """The result as text to read."""
    names = ("cost_growth", "cost_growth_clients", "cost_growth_steps")
    lines = [f"{name:<24} {result[name]:8.3f}" for name in names]  # type: ignore[literal-required]
    lines += [
        f"{'cohort_fill_gain':<24} {result['cohort_fill_gain']:8.3f}",
        f"{'cohort_step_time_ratio':<24} {result['cohort_step_time_ratio']:8.3f}",
    ]
    for kind, costs in (("clients", result["clients"]), ("steps", result["steps"])):
        lines.append(f"{kind:>8}  us/token  us/position  engine us/token  rows/forward")
        lines += [
            f"{name:>8} {cost['us_per_token']:9.1f} {cost['us_per_position']:12.1f} "
            f"{cost['engine_us_per_token']:16.1f} {cost['rows_per_forward']:13.1f}"
            for name, cost in costs.items()
        ]
    lines += [
        f"{name:<12} {one['rows_per_forward']:.1f} rows/forward, step {one['step_ms']:.1f} ms"
        for name, one in result["cohort"].items()
    ]
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """Cost against clients and against steps, over that of the first arm; the cohort beside."""
    drawing = Figure(figsize=(11, 4), layout="constrained")
    by_clients, by_steps, cohort = drawing.subplots(1, 3)
    curves = ((by_clients, "clients", result["clients"]), (by_steps, "steps", result["steps"]))
    for axes, label, costs in curves:
        for name in ("us_per_token", "us_per_position"):
            values = [cost[name] for cost in costs.values()]
            axes.plot(
                [int(count) for count in costs],
                [value / values[0] for value in values],
                marker="o",
                label=name.removeprefix("us_").replace("_", " "),
            )
        axes.axhspan(1, 1.15, color="black", alpha=0.1, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("cost, over the first")
        axes.legend()
    for place, key in enumerate(("rows_per_forward", "step_ms")):
        base = result["cohort"]["never waits"][key]  # type: ignore[literal-required]
        for index, (name, one) in enumerate(result["cohort"].items()):
            cohort.bar(
                place + 0.35 * index,
                one[key] / base,  # type: ignore[literal-required]
                width=0.3,
                color=f"C{index}",
                label=None if place else name,
            )
    cohort.set_xticks([0.175, 1.175], ["rows a forward", "step time"])
    cohort.set_ylabel("over an engine that never waits")
    cohort.legend()
    return drawing
