"""How long a light client waits at a saturated teacher, and what a burst does to it.

- `p50_ms`, `p95_ms`, `p99_ms`: of a `ScoreStates` with one state, asked at random moments by light
  clients while the trajectories of eight others fill every step. `p99_in_steps` is the last one in
  mean step times, which the server counted in the same window.
- `health_p50_ms`, `health_p99_ms`: of grpc.health.v1 on a connection of its own, meanwhile.
- A burst of ten times `max_queue_tokens`, half of it with a deadline shorter than a full queue
  takes: how much is refused (`refused_fraction`), with a retry hint (`refused_with_hint_fraction`)
  and how fast (`refusal_p99_ms`, in mean steps of the same burst `refusal_p99_in_steps`);
  `admitted_deadline_misses` counts those that were neither refused nor answered in full before
  their deadline, beside `admitted_deadline_misses_by_size`, of the same bursts at an engine that
  admits whatever fits its queue (`baselines/admission_by_size.py`), in turn.

Engine and clients are pinned as in the serving bench: health and clients share the front's core.
The engines of the bursts are threads beside their fronts (`load_server.py`), that under load is a
process, as in production.
"""

import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from matplotlib.figure import Figure

from tests.bench import load_arms, serving_arms
from tests.bench.burst_client import LENGTH, ROWS
from tests.bench.load_arms import LoadArms
from tests.bench.processes import Child
from tests.bench.serving_model import SIZES, ModelSize

_BATCH_TOKENS = 1408
_BURST_FACTOR = 10
_NUM_PROBES = 8
_MAX_ATTEMPT_S = 120.0
_OURS, _BY_SIZE = "step", "admission by size"


class Result(TypedDict):
    """Times in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    step_ms: float
    p99_in_steps: float
    num_scores: int
    health_p50_ms: float
    health_p99_ms: float
    num_health_checks: int
    num_burst_requests: int
    refused_fraction: float
    refused_with_hint_fraction: float
    refusal_p99_ms: float
    refusal_p99_in_steps: float
    num_admitted: int
    admitted_deadline_misses: int
    num_admitted_by_size: int
    admitted_deadline_misses_by_size: int
    score_ms: list[float]
    health_ms: list[float]


def run(*, quick: bool) -> Result:
    """Measures the demo's size."""
    return measure(
        SIZES["demo"],
        window_s=6.0 if quick else 120.0,
        num_capacity=6,
        num_bursts=1 if quick else 20,
    )


def measure(size: ModelSize, *, window_s: float, num_capacity: int, num_bursts: int = 1) -> Result:
    """Measures one model.

    Args:
        num_capacity: requests of the burst that fill the queue.
        num_bursts: of each way to admit.
    """
    options = {"size": size.as_json(), "batching": "step", "max_batch_tokens": _BATCH_TOKENS}
    config = {"max_batch_tokens": _BATCH_TOKENS, "max_queue_tokens": num_capacity * ROWS * LENGTH}
    # Both start at once: either takes seconds. Servers that nobody asks are idle.
    with (
        Child("tests.bench.serving_server", options) as server,
        load_arms.serve(
            size, {arm: {"engine": arm, "config": config} for arm in (_OURS, _BY_SIZE)}
        ) as arms,
    ):
        score_ms, health_ms, step_ms = _under_load(server, size, window_s=window_s)
        bursts = _bursts(arms, size, num_capacity=num_capacity, num_bursts=num_bursts)
    ours, by_size = bursts[_OURS], bursts[_BY_SIZE]
    refusal_p99_ms = float(np.percentile([call["time_ms"] for call in ours.refused], 99))
    p50_ms, p95_ms, p99_ms = np.percentile(score_ms, [50, 95, 99]).tolist()
    health_p50_ms, health_p99_ms = np.percentile(health_ms, [50, 99]).tolist()
    return {
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
        "p99_ms": p99_ms,
        "step_ms": step_ms,
        "p99_in_steps": p99_ms / step_ms,
        "num_scores": len(score_ms),
        "health_p50_ms": health_p50_ms,
        "health_p99_ms": health_p99_ms,
        "num_health_checks": len(health_ms),
        "num_burst_requests": len(ours.calls),
        "refused_fraction": len(ours.refused) / len(ours.calls),
        "refused_with_hint_fraction": float(np.mean([call["has_hint"] for call in ours.refused])),
        "refusal_p99_ms": refusal_p99_ms,
        "refusal_p99_in_steps": refusal_p99_ms / ours.step_ms,
        "num_admitted": ours.num_admitted,
        "admitted_deadline_misses": ours.num_misses,
        "num_admitted_by_size": by_size.num_admitted,
        "admitted_deadline_misses_by_size": by_size.num_misses,
        "score_ms": score_ms,
        "health_ms": health_ms,
    }


def _under_load(
    server: Child, size: ModelSize, *, window_s: float
) -> tuple[list[float], list[float], float]:
    """Milliseconds of each score, of each health check, and of a mean step."""
    with contextlib.ExitStack() as stack:
        address = server.first_line().rpartition(" ")[2]
        probe = {
            "address": address,
            "vocab_size": size.vocab_size,
        }
        stack.enter_context(serving_arms.clients(address, size, is_original=True))
        time.sleep(window_s / 6)
        probes = []
        for what, num_threads, pause_s in (("score", _NUM_PROBES, 0.2), ("health", 2, 0.03)):
            asked = {"what": what, "num_threads": num_threads, "mean_pause_s": pause_s}
            child = Child("tests.bench.latency_probe", probe | asked)
            probes.append(stack.enter_context(child))
        for child in probes:
            assert child.first_line() == "asking"
        before = serving_arms.counters(server)
        time.sleep(window_s)
        after = serving_arms.counters(server)
        answers = [child.answer(timeout_s=_MAX_ATTEMPT_S)["times_ms"] for child in probes]
    steps = after["num_forwards"] - before["num_forwards"]
    return answers[0], answers[1], 1e3 * (after["busy_s"] - before["busy_s"]) / steps


@dataclass(frozen=True, kw_only=True)
class _Burst:
    calls: list[dict[str, Any]]
    step_ms: float

    @property
    def refused(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["status"] == "RESOURCE_EXHAUSTED"]

    @property
    def num_admitted(self) -> int:
        return len(self.calls) - len(self.refused)

    @property
    def num_misses(self) -> int:
        return self.num_admitted - sum(call["status"] == "OK" for call in self.calls)


def _bursts(
    arms: LoadArms, size: ModelSize, *, num_capacity: int, num_bursts: int
) -> dict[str, _Burst]:
    """The same bursts at either way to admit, in turn."""
    calls: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms.addresses}
    busy_s, num_forwards = dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0.0)
    with Child("tests.bench.burst_client", None) as client:
        assert client.first_line() == "ready"

        def ask(arm: str, num_requests: int, timeouts_s: list[float]) -> list[dict[str, Any]]:
            task = {
                "address": arms.addresses[arm],
                "vocab_size": size.vocab_size,
                "num_requests": num_requests,
                "timeouts_s": timeouts_s,
            }
            client.tell(json.dumps(task))
            answer: list[dict[str, Any]] = json.loads(client.first_line(timeout_s=_MAX_ATTEMPT_S))[
                "calls"
            ]
            return answer

        for arm in calls:
            # Warms up, and tells the engine its speed.
            ask(arm, 2, [_MAX_ATTEMPT_S])
        full = ask(_OURS, num_capacity, [_MAX_ATTEMPT_S])
        assert all(call["status"] == "OK" for call in full)
        full_s = max(call["time_ms"] for call in full) / 1e3
        timeouts_s = [4 * full_s, full_s / 2]
        for _ in range(num_bursts):
            for arm in calls:
                with arms.counting(arm) as rose:
                    calls[arm] += ask(arm, _BURST_FACTOR * num_capacity, timeouts_s)
                busy_s[arm] += rose["busy_s"]
                num_forwards[arm] += rose["num_forwards"]
    return {
        arm: _Burst(calls=calls[arm], step_ms=1e3 * busy_s[arm] / num_forwards[arm])
        for arm in calls
    }


def table(result: Result) -> str:
    """The result as text to read."""
    return "\n".join(
        f"{name:<28} {value:10.3f}"
        for name, value in result.items()
        if isinstance(value, int | float)
    )


def figure(result: Result) -> Figure:
    """The share of calls that were answered within a time."""
    drawing = Figure(figsize=(9, 4), layout="constrained")
    scores, checks = drawing.subplots(1, 2)
    scores.ecdf([time_ms / result["step_ms"] for time_ms in result["score_ms"]])
    scores.axvline(4, color="black", linewidth=0.5, linestyle="--")
    scores.set_xlabel("single score under load, in step times")
    checks.ecdf(result["health_ms"], color="C1")
    checks.axvline(50, color="black", linewidth=0.5, linestyle="--")
    checks.set_xlabel("health check under load, ms")
    for axes in (scores, checks):
        axes.set_ylabel("share answered within")
        axes.set_xlim(left=0)
    return drawing
