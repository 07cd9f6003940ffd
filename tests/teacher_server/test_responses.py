import asyncio

from protos import errors, parts
from teacher_server.engine.stream import (
    OutputStream,
    StreamEnd,
    StreamItem,
    TargetsReady,
    TrajectoryDone,
)
from teacher_server.responses import Response, responses


def _targets(num_bytes: int, *, step: int = 0) -> TargetsReady:
    return TargetsReady(sequence_id=1, step=step, payload=bytes([step % 256]) * num_bytes)


def _done(sequence_id: int, *, num_bytes: int = 4) -> TrajectoryDone:
    return TrajectoryDone(
        sequence_id=sequence_id,
        token_ids=bytes(num_bytes),
        unmask_steps=bytes(num_bytes),
        num_forwards=1,
        num_steps=2,
        num_collected_steps=3,
        revision="revision",
        mask_token_suppressed=True,
    )


def _read(*items: StreamItem) -> tuple[list[Response], errors.TeacherError | None]:
    """Puts all items at once and reads them to the end."""
    taken: list[Response] = []
    failures: list[errors.TeacherError] = []

    # Returns nothing: asyncio.run formats what it returns, megabytes too.
    async def read() -> None:
        stream = OutputStream(loop=asyncio.get_running_loop(), window_bytes=1, on_room=lambda: None)
        for item in items:
            stream.put(item)
        await asyncio.sleep(0)
        try:
            async for response in responses(stream):
                taken.append(response)
                stream.release(response.num_bytes)
        except errors.TeacherError as error:
            failures.append(error)
        assert stream.pending_bytes == 0

    asyncio.run(read())
    return taken, failures[0] if failures else None


def test_small_records_share_a_message() -> None:
    (response,), error = _read(*(_targets(10, step=step) for step in range(50)), StreamEnd(None))
    assert error is None
    assert [part.step for part in response.parts] == list(range(50))
    assert response.num_bytes == 500


def test_a_large_record_is_cut_into_messages_of_one_mebibyte() -> None:
    taken, _ = _read(_targets(3 * parts.MESSAGE_BYTES + 5), StreamEnd(None))
    assert [response.num_bytes for response in taken] == [parts.MESSAGE_BYTES] * 3 + [5]
    assembler = parts.PayloadAssembler()
    payloads = [assembler.add((1, 0), part) for response in taken for part in response.parts]
    assert payloads[:3] == [None] * 3
    assert payloads[3] == bytes(3 * parts.MESSAGE_BYTES + 5)


def test_an_end_of_a_trajectory_comes_after_all_its_parts() -> None:
    taken, _ = _read(_targets(10), _done(1), _targets(10), _done(2), StreamEnd(None))
    order = [
        "parts" if response.parts else [record.sequence_id for record in response.trajectories]
        for response in taken
    ]
    assert order == ["parts", [1, 2]]


def test_many_long_ends_do_not_make_one_huge_message() -> None:
    items = [_done(index, num_bytes=parts.MESSAGE_BYTES // 4) for index in range(10)]
    taken, _ = _read(*items, StreamEnd(None))
    assert [len(response.trajectories) for response in taken] == [2] * 5


def test_what_came_before_an_error_is_sent_before_it_is_raised() -> None:
    (response,), error = _read(_targets(10), StreamEnd(errors.EngineError("boom")))
    assert response.num_bytes == 10
    assert isinstance(error, errors.EngineError)


def test_an_end_alone_sends_nothing() -> None:
    assert _read(StreamEnd(None)) == ([], None)
