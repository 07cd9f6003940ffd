import asyncio
import logging

import pytest

from masked_diffusion.families import Denoiser
from teacher_server import status
from teacher_server.engine.counters import EngineCounters
from tests.teacher_server import calls
from tests.teacher_server.engines import run_engine


def test_rates_are_differences_over_seconds() -> None:
    before = EngineCounters(
        num_forwards=10, num_forward_rows=20, num_forward_tokens=100, num_padded_tokens=200
    )
    now = EngineCounters(
        num_forwards=30,
        num_forward_rows=80,
        num_forward_tokens=400,
        num_padded_tokens=600,
        num_target_positions=50,
        busy_s=1.0,
    )
    assert status.rates(before, now, seconds=2.0) == (
        "forwards_per_s=10.0 rows_per_forward=3.0 batch_fill=0.75 tokens_per_s=150 "
        "positions_per_s=25 busy=0.50"
    )


def test_rates_of_an_idle_interval_are_0() -> None:
    idle = status.rates(EngineCounters(), EngineCounters(), seconds=1.0)
    assert "forwards_per_s=0.0 rows_per_forward=0.0 batch_fill=0.00" in idle


def test_a_status_line_is_written_for_intervals_with_work_alone(
    tiny_denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with run_engine(tiny_denoiser) as run:

        async def watch() -> None:
            task = asyncio.create_task(status.log_status(run.engine, interval_s=0.01))
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert "status rows_live" not in caplog.text
            state = calls.make_state(tiny_denoiser.info, length=9, num_masked=3)
            await asyncio.to_thread(lambda: run.read(run.score([state])))
            for _ in range(1000):
                if "rows_per_forward=1.0" in caplog.text:
                    break
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(watch())
    lines = [line for line in caplog.messages if line.startswith("status ")]
    # One for the interval of the forward; the request may have been waiting in the one before.
    assert 1 <= len(lines) <= 2
    assert lines[-1].startswith("status rows_live=")
    for name in ("rows_waiting", "queue_tokens", "backlog_s", "batch_fill", "tokens_per_s"):
        assert f" {name}=" in lines[-1]
