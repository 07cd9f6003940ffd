"""The periodic one-line status, and health that proves work."""

import asyncio
import logging
import time

from grpc_health.v1 import health, health_pb2

from protos import teacher_pb2
from teacher_server.engine.counters import EngineCounters
from teacher_server.engine.host import EngineHost

logger = logging.getLogger(__name__)

SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["TeacherService"].full_name
_HEALTH_PERIOD_S = 0.5


async def set_health(engine: EngineHost, servicer: health.aio.HealthServicer) -> None:
    """Tells grpc.health.v1 how the engine is.

    The service is SERVING while a real forward succeeded recently and new work is admitted; the
    empty name is SERVING until the server begins to stop.
    """
    load = engine.load()
    statuses = health_pb2.HealthCheckResponse
    serving = load.healthy and not load.draining
    await servicer.set(SERVICE, statuses.SERVING if serving else statuses.NOT_SERVING)


async def keep_health(engine: EngineHost, servicer: health.aio.HealthServicer) -> None:
    """Keeps grpc.health.v1 true until cancelled."""
    while True:
        await set_health(engine, servicer)
        await asyncio.sleep(_HEALTH_PERIOD_S)


async def log_status(engine: EngineHost, *, interval_s: float) -> None:
    """Logs one line for each interval in which there was work, until cancelled."""
    before, before_s = engine.snapshot(), time.monotonic()
    while True:
        await asyncio.sleep(interval_s)
        now, now_s = engine.snapshot(), time.monotonic()
        load = engine.load()
        if now.num_forwards > before.num_forwards or load.num_queued_tokens:
            logger.info(
                "status rows_live=%d rows_waiting=%d queue_tokens=%d backlog_s=%.1f %s",
                load.num_live_rows,
                load.num_waiting_rows,
                load.num_queued_tokens,
                load.backlog_s,
                rates(before, now, seconds=now_s - before_s),
            )
        before, before_s = now, now_s


def rates(before: EngineCounters, now: EngineCounters, *, seconds: float) -> str:
    """What happened between two snapshots, as key=value text.

    batch_fill is the share of forwarded tokens that were not padding.
    """
    forwards = now.num_forwards - before.num_forwards
    rows = now.num_forward_rows - before.num_forward_rows
    tokens = now.num_forward_tokens - before.num_forward_tokens
    padded = now.num_padded_tokens - before.num_padded_tokens
    positions = now.num_target_positions - before.num_target_positions
    busy_s = now.busy_s - before.busy_s
    return (
        f"forwards_per_s={forwards / seconds:.1f} rows_per_forward={rows / max(forwards, 1):.1f} "
        f"batch_fill={tokens / max(padded, 1):.2f} tokens_per_s={tokens / seconds:.0f} "
        f"positions_per_s={positions / seconds:.0f} busy={min(busy_s / seconds, 1):.2f}"
    )
