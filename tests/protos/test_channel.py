import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures

import pytest

from protos import channel, teacher_pb2_grpc
from protos import teacher_pb2 as pb

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

TIMEOUT_S = 20.0
LARGE = pb.DescribeTeacherResponse(name="x" * (channel.MAX_MESSAGE_BYTES - 1024))


class LongNamedTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers with a message just below the limit."""

    def DescribeTeacher(  # noqa: N802
        self, request: pb.DescribeTeacherRequest, context: grpc.ServicerContext
    ) -> pb.DescribeTeacherResponse:
        return LARGE


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1), options=channel.SERVER_OPTIONS)
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(LongNamedTeacher(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait(TIMEOUT_S)


def test_a_message_just_below_the_limit_passes_both_ends(address):
    with grpc.insecure_channel(address, options=channel.CLIENT_OPTIONS) as connection:
        stub = teacher_pb2_grpc.TeacherServiceStub(connection)

        answer = stub.DescribeTeacher(pb.DescribeTeacherRequest(), timeout=TIMEOUT_S)

    assert len(answer.name) == len(LARGE.name)


def test_a_second_server_on_a_port_fails_instead_of_sharing_it(address):
    second = grpc.server(futures.ThreadPoolExecutor(1), options=channel.SERVER_OPTIONS)

    with pytest.raises(RuntimeError, match="bind"):
        second.add_insecure_port(address)


def test_a_client_does_not_ping_more_often_than_a_server_bears():
    client, server = dict(channel.CLIENT_OPTIONS), dict(channel.SERVER_OPTIONS)

    bearable_ms = server["grpc.http2.min_recv_ping_interval_without_data_ms"]

    assert client["grpc.keepalive_time_ms"] >= 2 * bearable_ms
    assert client["grpc.keepalive_permit_without_calls"] == 1
    assert server["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.parametrize("first", ["from protos import channel", "from protos import errors"])
def test_fork_support_is_on_whichever_module_of_the_contract_is_imported_first(first):
    # gRPC reads its environment once, when it is imported.
    program = (
        f"{first}\nimport grpc\nfrom grpc._cython import cygrpc\n"
        "print(cygrpc.is_fork_support_enabled())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}

    printed = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert printed.stdout.strip() == "True"
