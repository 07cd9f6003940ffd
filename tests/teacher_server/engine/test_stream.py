import asyncio
import threading
from collections.abc import Iterator

import pytest

from teacher_server.engine.stream import OutputStream, StreamEnd, StreamItem, TargetsReady

WAIT_S = 20.0


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def _targets(num_bytes: int, *, step: int = 0) -> TargetsReady:
    return TargetsReady(sequence_id=0, step=step, payload=bytes(num_bytes))


def test_items_come_in_the_order_they_were_put(loop: asyncio.AbstractEventLoop) -> None:
    stream = OutputStream(loop=loop, window_bytes=10, on_room=lambda: None)
    items: list[StreamItem] = [_targets(4, step=step) for step in range(50)]
    items.append(StreamEnd(None))

    def write() -> None:
        for item in items:
            stream.put(item)

    async def read() -> list[StreamItem]:
        writer = threading.Thread(target=write)
        writer.start()
        taken = [await stream.get() for _ in items]
        await asyncio.to_thread(writer.join)
        return taken

    taken = loop.run_until_complete(read())
    assert all(one is other for one, other in zip(taken, items, strict=True))
    loop.run_until_complete(loop.shutdown_default_executor())


def test_what_is_ready_is_had_without_waiting(loop: asyncio.AbstractEventLoop) -> None:
    stream = OutputStream(loop=loop, window_bytes=10, on_room=lambda: None)
    assert stream.get_ready() is None
    item = _targets(1)
    stream.put(item)
    loop.run_until_complete(asyncio.sleep(0))
    assert stream.get_ready() is item
    assert stream.get_ready() is None


def test_the_window_counts_bytes_until_the_transport_has_them(
    loop: asyncio.AbstractEventLoop,
) -> None:
    woken: list[None] = []
    stream = OutputStream(loop=loop, window_bytes=10, on_room=lambda: woken.append(None))
    stream.put(_targets(9))
    assert stream.has_room
    stream.put(_targets(6))
    assert not stream.has_room
    loop.run_until_complete(stream.get())
    assert stream.pending_bytes == 15
    stream.release(5)
    assert not stream.has_room
    assert not woken
    stream.release(1)
    assert stream.has_room
    assert len(woken) == 1
    stream.release(9)
    assert len(woken) == 1
    assert stream.pending_bytes == 0


def test_an_end_takes_no_room(loop: asyncio.AbstractEventLoop) -> None:
    stream = OutputStream(loop=loop, window_bytes=1, on_room=lambda: None)
    stream.put(StreamEnd(None))
    assert stream.has_room
    assert stream.pending_bytes == 0


def test_a_writer_that_waits_for_room_is_always_woken(loop: asyncio.AbstractEventLoop) -> None:
    """The writer fills the window while the reader empties it: no wake may fall in between."""
    room = threading.Event()
    stream = OutputStream(loop=loop, window_bytes=3, on_room=room.set)
    num_items = 3000
    starved: list[int] = []

    def write() -> None:
        for index in range(num_items):
            while not stream.has_room:
                if not room.wait(WAIT_S):
                    starved.append(index)
                    return
                room.clear()
            stream.put(_targets(2))

    async def read() -> None:
        for _ in range(num_items):
            await stream.get()
            stream.release(2)

    writer = threading.Thread(target=write)
    writer.start()
    loop.run_until_complete(asyncio.wait_for(read(), WAIT_S))
    writer.join(WAIT_S)
    assert not starved
