import json

import numpy as np
import pytest

from tests.bench import latency, scaling
from tests.bench.baselines.cohort_waiting import CohortWaitingEngine
from tests.bench.serving_model import ModelSize
from tests.teacher_server import calls
from tests.teacher_server.engines import run_engine

SIZE = ModelSize(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_key_value_heads=1,
)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_latency_of_a_tiny_teacher_has_every_figure():
    # Top-k 200 is asked for, of a vocabulary that has to have so many.
    size = ModelSize(**SIZE.as_json() | {"vocab_size": 256})
    result = latency.measure(size, window_s=1.0, num_capacity=3)
    json.dumps(result)
    assert result["num_scores"] > 0 and result["num_health_checks"] > 0
    assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"]
    assert result["p99_in_steps"] == pytest.approx(result["p99_ms"] / result["step_ms"])
    assert result["num_burst_requests"] == 30
    assert 0 < result["refused_fraction"] < 1
    assert result["refused_with_hint_fraction"] == 1
    assert 1 <= result["num_admitted"] < 30 and 1 <= result["num_admitted_by_size"] < 30
    assert result["refusal_p99_in_steps"] > 0
    assert "p99_in_steps" in latency.table(result)
    assert len(latency.figure(result).axes) == 2


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_scaling_of_a_tiny_teacher_has_every_figure():
    result = scaling.measure(
        SIZE, num_clients=(1, 4), num_steps=(4, 8), num_requests=8, num_turns=2
    )
    json.dumps(result)
    assert set(result["clients"]) == {"1", "4"} and set(result["steps"]) == {"4", "8"}
    for cost in (*result["clients"].values(), *result["steps"].values()):
        assert 0 < cost["engine_us_per_token"] < cost["server_us_per_token"]
        assert cost["engine_us_per_position"] * cost["positions_per_token"] == pytest.approx(
            cost["engine_us_per_token"]
        )
    # The same requests, whoever asks.
    assert (
        result["clients"]["1"]["positions_per_token"]
        == result["clients"]["4"]["positions_per_token"]
    )
    assert result["cost_growth"] >= 1
    assert {len(turns) for turns in result["cohort"].values()} == {2}
    assert "cohort_fill_gain" in scaling.table(result)
    assert len(scaling.figure(result).axes) == 3


def test_growth_is_the_steepest_rise_and_falling_is_none():
    def growth(*values: float) -> float:
        return scaling._growth({str(i): _cost(value) for i, value in enumerate(values)})

    assert growth(3.0, 2.0, 1.0) == 1
    assert growth(3.0, 1.0, 2.0, 1.5) == 2


def _cost(value: float) -> scaling.Cost:
    return {
        "engine_us_per_token": value,
        "engine_us_per_position": 0.0,
        "server_us_per_token": 0.0,
        "positions_per_token": 0.0,
        "rows_per_forward": 0.0,
    }


def test_the_waiting_engine_starts_with_the_last_rank_or_without_it_when_time_is_over(
    tiny_denoiser,
):
    states = [
        calls.make_state(tiny_denoiser.info, length=16, num_masked=8, seed=seed)
        for seed in range(9)
    ]

    class Waiting(CohortWaitingEngine):
        num_cohort_rows = 4
        max_wait_steps = 1000.0

    with run_engine(tiny_denoiser, engine_class=Waiting) as run:
        # No step was measured yet: nothing to wait a part of.
        run.read(run.score(states[:1]))
        before = run.engine.snapshot()
        requests = [run.score([state], client_id=str(np.sum(state))) for state in states[1:5]]
        assert all(run.read(request)[2] is None for request in requests)
        assert run.engine.snapshot().num_forwards == before.num_forwards + 1
        Waiting.max_wait_steps = 1.0
        assert run.read(run.score(states[5:7]))[2] is None
        run.assert_nothing_is_left()
