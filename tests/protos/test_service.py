import asyncio
import threading
from collections.abc import Iterator

import pytest

from protos import channel, parts, service, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

PAYLOADS = [(1, 0, b"a" * 3_000_000), (-2, 5, b""), (3, 0, b"b" * 100)]
RECORD = pb.TrajectoryRecord(sequence_id=1, num_steps=4)


def packed() -> Iterator[list[parts.Part]]:
    return parts.pack_parts(PAYLOADS)


class OurTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers alike to every request."""

    async def ScoreStates(self, request, context):  # noqa: N802
        for message in packed():
            yield TargetsMessage(message)

    async def SampleTrajectories(self, request, context):  # noqa: N802
        for message in packed():
            yield TargetsMessage(message)
        yield TargetsMessage([], [RECORD])

    async def GetLoad(self, request, context):  # noqa: N802
        return pb.GetLoadResponse(num_live_rows=7)


class GeneratedTeacher(OurTeacher):
    """Says the same in protobuf's classes."""

    async def ScoreStates(self, request, context):  # noqa: N802
        for message in packed():
            yield pb.ScoreStatesResponse(parts=map(as_protobuf, message))

    async def SampleTrajectories(self, request, context):  # noqa: N802
        for message in packed():
            yield pb.SampleTrajectoriesResponse(parts=map(as_protobuf, message))
        yield pb.SampleTrajectoriesResponse(trajectories=[RECORD])


def as_protobuf(part: parts.Part) -> pb.TargetsPart:
    return pb.TargetsPart(
        sequence_id=part.sequence_id,
        step=part.step,
        payload_bytes=part.payload_bytes,
        offset=part.offset,
        data=bytes(part.data),
        crc32c=part.crc32c,
    )


SERVERS = {
    "ours": (service.add_to_server, OurTeacher),
    "generated": (teacher_pb2_grpc.add_TeacherServiceServicer_to_server, GeneratedTeacher),
}
STUBS = {"ours": service.TeacherStub, "generated": teacher_pb2_grpc.TeacherServiceStub}


@pytest.fixture(params=SERVERS)
def address(request) -> Iterator[str]:
    """A server in a thread of its own."""
    add, teacher = SERVERS[request.param]
    started = threading.Event()
    state: dict = {}

    async def serve() -> None:
        server = grpc.aio.server(options=channel.SERVER_OPTIONS)
        add(teacher(), server)
        state["port"] = server.add_insecure_port("127.0.0.1:0")
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        started.set()
        await state["stop"].wait()
        await server.stop(grace=None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    yield f"127.0.0.1:{state['port']}"
    state["loop"].call_soon_threadsafe(state["stop"].set)
    thread.join()


@pytest.mark.parametrize("stub", STUBS)
def test_ours_and_the_generated_ends_understand_each_other(address, stub):
    with grpc.insecure_channel(address, options=channel.CLIENT_OPTIONS) as connection:
        client = STUBS[stub](connection)
        scores = list(client.ScoreStates(pb.ScoreStatesRequest(), timeout=20))
        answers = list(client.SampleTrajectories(pb.SampleTrajectoriesRequest(), timeout=20))
        assert client.GetLoad(pb.GetLoadRequest(), timeout=20).num_live_rows == 7
    assert list(answers[-1].trajectories) == [RECORD]
    for stream in (scores, answers):
        assembler = parts.PayloadAssembler()
        whole = []
        for message in stream:
            for part in message.parts:
                payload = assembler.add((part.sequence_id, part.step), part)
                if payload is not None:
                    whole.append((part.sequence_id, part.step, bytes(payload)))
        assert whole == PAYLOADS
