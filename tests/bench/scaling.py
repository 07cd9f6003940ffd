"""What a useful token costs the engine as clients and steps grow, and what cohorts could gain.

A cost is processor time of the engine's thread, all that it does (batches, forwards, head,
sampling, encoding, ends of requests), over tokens of its forwards, padding left out.

- `cost_growth_clients`: 1 to 64 clients, each with a connection of its own, share the same
  requests (trajectories of four steps, mixed lengths, captured at the first step), so that tokens
  and captured positions are the same in every arm. One client alone fills the token budget, so
  that the curve shows what clients cost and not what fuller batches gain.
- `cost_growth_steps`: trajectories of 8 to 256 steps, every step captured, over rows of one
  length, as many in flight and as many forwards altogether in each arm.
- `cost_growth`: the larger one. A growth is the steepest rise along a curve, from any point to any
  later one; falling is none. `cost_growth_per_position` is the same over captured positions, and
  `positions_per_token` tells how many there were: a state of K steps has on average (K + 1) / 2K of
  the masks of its start, so a position of 256 steps takes 1.12 times the tokens of one of 8 steps.
- `cohort_fill_gain`, `cohort_step_time_ratio`: eight ranks ask at moments spread over half a
  forward of all of them; rows a forward, and time from the last rank's request to the last answer,
  of an engine that waits for the ranks over those of one that never does: medians of the ratios of
  turns, with all of them in `cohort`. The waiting one (`baselines/cohort_waiting.py`) knows the
  number of rows, and nobody else asks: the most that the hint can give.

All arms are served by one process (`load_server.py`) and take turns.
"""

import contextlib
import json
import statistics
from collections.abc import Iterator
from typing import Any, TypedDict

from matplotlib.figure import Figure

from tests.bench import load_arms
from tests.bench.load_arms import LoadArms
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
_NUM_RANKS = 8
_RANK_LENGTH = 64
_NUM_STEPS_OF_CLIENTS = 4
_MAX_TASK_S = 600.0
_ARMS = {
    "cost": {"engine": "step", "config": {"max_batch_tokens": 256}},
    "never waits": {"engine": "step", "config": {"max_batch_tokens": 8192}},
    "waits": {"engine": "cohort", "config": {"max_batch_tokens": 8192}},
}
_COHORT_ARMS = ("never waits", "waits")


class Cost(TypedDict):
    """Of one arm, microseconds of processor time."""

    engine_us_per_token: float
    engine_us_per_position: float
    server_us_per_token: float
    """Of the whole process: the engine's and the front's."""
    positions_per_token: float
    rows_per_forward: float


class Turn(TypedDict):
    """Of eight ranks that met after each step."""

    rows_per_forward: float
    step_ms: float


class Result(TypedDict):
    """Costs by number of clients or steps; turns of each cohort's arm, in order."""

    cost_growth: float
    cost_growth_clients: float
    cost_growth_steps: float
    cost_growth_per_position: float
    cohort_fill_gain: float
    cohort_step_time_ratio: float
    clients: dict[str, Cost]
    steps: dict[str, Cost]
    cohort: dict[str, list[Turn]]


def run(*, quick: bool) -> Result:
    """Measures a small model; without `quick` the demo's, all arms, three times."""
    if quick:
        return measure(_SMALL, num_clients=(1, 8, 64), num_steps=(8, 128), num_requests=64)
    return measure(
        SIZES["demo"],
        num_clients=(1, 2, 4, 8, 16, 32, 64),
        num_steps=(8, 16, 32, 64, 128, 256),
        num_requests=256,
        num_rounds=3,
        num_turns=15,
    )


def measure(
    size: ModelSize,
    *,
    num_clients: tuple[int, ...],
    num_steps: tuple[int, ...],
    num_requests: int,
    num_rounds: int = 1,
    num_turns: int = 5,
) -> Result:
    """Measures one model; arms take turns within a round.

    Args:
        num_requests: of each arm of clients.
        num_turns: of each arm of the cohort.
    """
    by_clients: dict[str, list[Cost]] = {str(count): [] for count in num_clients}
    by_steps: dict[str, list[Cost]] = {str(count): [] for count in num_steps}
    with _server_and_client(size) as (arms, client):
        _cost(arms, client, _clients_task(2, num_requests=16))  # warms up
        for _ in range(num_rounds):
            for count in num_clients:
                task = _clients_task(count, num_requests=num_requests)
                by_clients[str(count)].append(_cost(arms, client, task))
            for count in num_steps:
                task = _steps_task(count, max_steps=max(num_steps))
                by_steps[str(count)].append(_cost(arms, client, task))
        turns = _cohorts(arms, client, num_turns=num_turns)
    clients = {name: _median(costs) for name, costs in by_clients.items()}
    steps = {name: _median(costs) for name, costs in by_steps.items()}
    growth = {"clients": _growth(clients), "steps": _growth(steps)}
    of_position = "engine_us_per_position"
    return {
        "cost_growth": max(growth.values()),
        "cost_growth_clients": growth["clients"],
        "cost_growth_steps": growth["steps"],
        "cost_growth_per_position": max(_growth(clients, of_position), _growth(steps, of_position)),
        "cohort_fill_gain": statistics.median(_ratios(turns, "rows_per_forward")),
        "cohort_step_time_ratio": statistics.median(_ratios(turns, "step_ms")),
        "clients": clients,
        "steps": steps,
        "cohort": turns,
    }


def _clients_task(num_clients: int, *, num_requests: int) -> dict[str, Any]:
    return {
        "num_clients": num_clients,
        "num_in_flight": 2,
        "num_requests": num_requests,
        "num_steps": _NUM_STEPS_OF_CLIENTS,
        "every_n_steps": _NUM_STEPS_OF_CLIENTS,
    }


def _steps_task(num_steps: int, *, max_steps: int) -> dict[str, Any]:
    return {
        "num_clients": 1,
        "num_in_flight": 1,  # one after another: in flight is the same to the last step
        "num_requests": max_steps // num_steps,
        "num_steps": num_steps,
        "every_n_steps": 1,
        # A step needs a mask to take: seven eighths of a row are masked.
        "length": max(64, -(-8 * max_steps // 7)),
    }


@contextlib.contextmanager
def _server_and_client(size: ModelSize) -> Iterator[tuple[LoadArms, Child]]:
    with (
        load_arms.serve(size, _ARMS, num_cohort_rows=ROWS * _NUM_RANKS) as arms,
        Child("tests.bench.scaling_client", {"vocab_size": size.vocab_size}) as client,
    ):
        assert client.first_line() == "ready"
        yield arms, client


def _ask(client: Child, task: dict[str, Any]) -> list[float]:
    client.tell(json.dumps(task))
    answer: list[float] = json.loads(client.first_line(timeout_s=_MAX_TASK_S))["step_s"]
    return answer


def _cost(arms: LoadArms, client: Child, task: dict[str, Any]) -> Cost:
    with arms.counting("cost") as rose:
        _ask(client, {"task": "clients", "address": arms.addresses["cost"], **task})
    return {
        "engine_us_per_token": 1e6 * rose["engine_cpu_s"] / rose["num_forward_tokens"],
        "engine_us_per_position": 1e6 * rose["engine_cpu_s"] / rose["num_target_positions"],
        "server_us_per_token": 1e6 * rose["cpu_s"] / rose["num_forward_tokens"],
        "positions_per_token": rose["num_target_positions"] / rose["num_forward_tokens"],
        "rows_per_forward": rose["num_forward_rows"] / rose["num_forwards"],
    }


def _median(costs: list[Cost]) -> Cost:
    return {
        name: statistics.median(cost[name] for cost in costs)  # type: ignore[literal-required]
        for name in costs[0]
    }  # type: ignore[return-value]


def _growth(costs: dict[str, Cost], name: str = "engine_us_per_token") -> float:
    values = [cost[name] for cost in costs.values()]  # type: ignore[literal-required]
    return max(value / min(values[: index + 1]) for index, value in enumerate(values))


def _cohorts(arms: LoadArms, client: Child, *, num_turns: int) -> dict[str, list[Turn]]:
    """Both engines in turn, at a jitter of half of what a step of all ranks at once takes."""
    task = {"task": "ranks", "num_ranks": _NUM_RANKS, "length": _RANK_LENGTH}
    at_once: list[float] = []
    for arm in _COHORT_ARMS:  # warms both up
        address = {"address": arms.addresses[arm]}
        at_once += _ask(client, task | address | {"num_steps": 5, "jitter_s": 0.0})
    task |= {"num_steps": 9, "jitter_s": statistics.median(at_once) / 2}
    turns: dict[str, list[Turn]] = {arm: [] for arm in _COHORT_ARMS}
    for index in range(num_turns):
        # Each arm goes first as often: what comes second finds the machine otherwise.
        for arm in _COHORT_ARMS[:: -1 if index % 2 else 1]:
            turns[arm].append(_turn(arms, client, task, arm))
    return turns


def _turn(arms: LoadArms, client: Child, task: dict[str, Any], arm: str) -> Turn:
    with arms.counting(arm) as rose:
        step_s = statistics.median(_ask(client, task | {"address": arms.addresses[arm]}))
    return {
        "rows_per_forward": rose["num_forward_rows"] / rose["num_forwards"],
        "step_ms": 1e3 * step_s,
    }


def _ratios(turns: dict[str, list[Turn]], name: str) -> list[float]:
    """Of the waiting engine over the other, of each turn."""
    never, waits = (
        [turn[name] for turn in turns[arm]]  # type: ignore[literal-required]
        for arm in _COHORT_ARMS
    )
    return [one / other for one, other in zip(waits, never, strict=True)]


def table(result: Result) -> str:
    """The result as text to read."""
    names = [name for name, value in result.items() if isinstance(value, float)]
    lines = [f"{name:<26} {result[name]:8.3f}" for name in names]  # type: ignore[literal-required]
    for kind, costs in (("clients", result["clients"]), ("steps", result["steps"])):
        lines.append(
            f"{kind:>8}  engine us/token  us/position  server us/token  positions/token  "
            "rows/forward"
        )
        lines += [
            f"{name:>8} {cost['engine_us_per_token']:16.1f} "
            f"{cost['engine_us_per_position']:12.1f} {cost['server_us_per_token']:16.1f} "
            f"{cost['positions_per_token']:16.3f} {cost['rows_per_forward']:13.1f}"
            for name, cost in costs.items()
        ]
    for arm, turns in result["cohort"].items():
        rows, step_ms = (
            sorted(turn[name] for turn in turns) for name in ("rows_per_forward", "step_ms")
        )
        lines.append(
            f"{arm:<12} {statistics.median(rows):5.1f} rows/forward, step "
            f"{statistics.median(step_ms):.1f} ms ({step_ms[0]:.1f} to {step_ms[-1]:.1f} "
            f"in {len(turns)} turns)"
        )
    ratios = _ratios(result["cohort"], "step_ms")
    lines.append(f"ratio of step times: {min(ratios):.2f} to {max(ratios):.2f}")
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """Cost against clients and against steps, over that of the first arm; the cohort beside."""
    drawing = Figure(figsize=(11, 4), layout="constrained")
    by_clients, by_steps, cohort = drawing.subplots(1, 3)
    curves = ((by_clients, "clients", result["clients"]), (by_steps, "steps", result["steps"]))
    labels = {
        "engine_us_per_token": "engine, a token",
        "engine_us_per_position": "engine, a position",
        "server_us_per_token": "engine and front, a token",
    }
    for axes, kind, costs in curves:
        for name, label in labels.items():
            values = [cost[name] for cost in costs.values()]  # type: ignore[literal-required]
            axes.plot(
                [int(count) for count in costs],
                [value / values[0] for value in values],
                marker="o",
                label=label,
            )
        axes.axhspan(1, 1.15, color="black", alpha=0.1, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(kind)
        axes.set_ylabel("cost, over the first")
        axes.legend()
    names = {"rows a forward": "rows_per_forward", "step time": "step_ms"}
    for place, name in enumerate(names.values()):
        ratios = _ratios(result["cohort"], name)
        cohort.plot([place] * len(ratios), ratios, "o", color="C0", alpha=0.5)
        cohort.plot([place], [statistics.median(ratios)], "_", color="black", markersize=30)
    cohort.axhline(1, color="black", linewidth=0.5)
    cohort.set_xlim(-0.5, 1.5)
    cohort.set_ylim(bottom=0)
    cohort.set_xticks([0, 1], list(names))
    cohort.set_ylabel("waits for ranks, over never waits; a dot a turn")
    return drawing
