"""Groups what a stream holds into messages of about 1 MiB."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from protos import parts
from protos import teacher_pb2 as pb
from teacher_server.engine.stream import (
    OutputStream,
    StreamEnd,
    StreamItem,
    TargetsReady,
    TrajectoryDone,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What one message holds: parts of targets, or ends of trajectories."""

    parts: list[parts.Part]
    trajectories: list[pb.TrajectoryRecord]
    num_bytes: int
    """Bytes of targets in it."""


async def responses(stream: OutputStream) -> AsyncIterator[Response]:
    """What is ready, in order; waits only when nothing is.

    Raises:
        TeacherError: the request did not end well.
    """
    while True:
        items = await _ready_items(stream)
        end = items.pop() if isinstance(items[-1], StreamEnd) else None
        for response in _pack(items):
            yield response
        if isinstance(end, StreamEnd):
            if end.error is not None:
                raise end.error
            return


async def _ready_items(stream: OutputStream) -> list[StreamItem]:
    """The next item and those ready behind it, up to the end or about one message."""
    items: list[StreamItem] = []
    num_bytes = 0
    item: StreamItem | None = await stream.get()
    while item is not None:
        items.append(item)
        num_bytes += _num_bytes(item)
        if isinstance(item, StreamEnd) or num_bytes >= parts.MESSAGE_BYTES:
            break
        item = stream.get_ready()
    return items


def _num_bytes(item: StreamItem) -> int:
    match item:
        case TargetsReady():
            return len(item.payload)
        case TrajectoryDone():
            return len(item.token_ids) + len(item.unmask_steps)
        case _:
            return 0


def _pack(items: list[StreamItem]) -> Iterator[Response]:
    payloads = (
        (item.sequence_id, item.step, item.payload)
        for item in items
        if isinstance(item, TargetsReady)
    )
    for message in parts.pack_parts(payloads):
        yield Response(
            parts=message, trajectories=[], num_bytes=sum(len(part.data) for part in message)
        )
    # After all their parts: a trajectory's record is its last word.
    records = [_record(item) for item in items if isinstance(item, TrajectoryDone)]
    if records:
        yield Response(parts=[], trajectories=records, num_bytes=0)


def _record(item: TrajectoryDone) -> pb.TrajectoryRecord:
    return pb.TrajectoryRecord(
        sequence_id=item.sequence_id,
        token_ids=item.token_ids,
        unmask_steps=item.unmask_steps,
        num_forwards=item.num_forwards,
        num_steps=item.num_steps,
        num_collected_steps=item.num_collected_steps,
        revision=item.revision,
        mask_token_suppressed=item.mask_token_suppressed,
    )
