import asyncio
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos import channel, errors, teacher_pb2_grpc
from protos import teacher_pb2 as pb

TIMEOUT_S = 20.0
ALL: list[type[errors.TeacherError]] = [*errors.ERRORS.values(), errors.TeacherError]
BY_NAME = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


class RefusingTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers every call in one way: that which the test has set."""

    def __init__(self) -> None:
        self.error: errors.TeacherError | None = None
        self.abort_with: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
        self.name_bytes = 0

    async def _refuse(self, context: grpc.aio.ServicerContext) -> None:
        if self.error is not None:
            self.abort_with = (self.error.code, str(self.error), errors.to_trailers(self.error))
        code, message, trailers = self.abort_with
        await context.abort(code, message, trailing_metadata=trailers)

    async def GetLoad(  # noqa: N802
        self, request: pb.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetLoadResponse:
        await self._refuse(context)
        raise AssertionError("abort raises")

    async def ScoreStates(  # noqa: N802
        self, request: pb.ScoreStatesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ScoreStatesResponse]:
        yield pb.ScoreStatesResponse()
        await self._refuse(context)

    async def SampleTrajectories(  # noqa: N802
        self, request: pb.SampleTrajectoriesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SampleTrajectoriesResponse]:
        # Until the call is cancelled or its deadline passes.
        await asyncio.Event().wait()
        yield pb.SampleTrajectoriesResponse()

    async def DescribeTeacher(  # noqa: N802
        self, request: pb.DescribeTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeTeacherResponse:
        return pb.DescribeTeacherResponse(name="x" * self.name_bytes)

    async def GetHead(  # noqa: N802
        self, request: pb.GetHeadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetHeadResponse]:
        raise LookupError("a bug of the server")
        yield pb.GetHeadResponse()


@dataclass
class Running:
    address: str
    teacher: RefusingTeacher
    stub: teacher_pb2_grpc.TeacherServiceStub
    channel: grpc.Channel


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server on its own event loop in a thread, and a blocking channel to it."""
    teacher = RefusingTeacher()
    ready, ports = threading.Event(), []
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server(options=channel.SERVER_OPTIONS)
        teacher_pb2_grpc.add_TeacherServiceServicer_to_server(teacher, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await stopping.wait()
        await server.stop(grace=None)

    def run() -> None:
        # As a context: a runner that is merely used leaves its loop open.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(TIMEOUT_S)
        address = f"127.0.0.1:{ports[0]}"
        with grpc.insecure_channel(address, options=channel.CLIENT_OPTIONS) as connection:
            stub = teacher_pb2_grpc.TeacherServiceStub(connection)
            yield Running(address, teacher, stub, connection)
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def failure_of(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def failures(running: Running) -> list[grpc.RpcError]:
    """The failure of a plain call, and that of a stream that had begun."""
    stub = running.stub
    return [
        failure_of(lambda: stub.GetLoad(pb.GetLoadRequest(), timeout=TIMEOUT_S)),
        failure_of(lambda: list(stub.ScoreStates(pb.ScoreStatesRequest(), timeout=TIMEOUT_S))),
    ]


def refuse(running: Running, error: errors.TeacherError) -> list[errors.TeacherError]:
    """What a client makes of an error that the server raises."""
    running.teacher.error = error
    return [errors.from_rpc_error(found, address=running.address) for found in failures(running)]


def abort(
    running: Running,
    code: grpc.StatusCode,
    *,
    message: str = "no",
    details: bytes | None = None,
) -> list[errors.TeacherError]:
    """What a client makes of a status with these details."""
    trailers = () if details is None else ((errors.DETAILS_KEY, details),)
    running.teacher.error = None
    running.teacher.abort_with = (code, message, trailers)
    return [errors.from_rpc_error(found, address=running.address) for found in failures(running)]


# --- the table --------------------------------------------------------------------------------


def test_every_class_has_its_own_reason():
    assert [errors.ERRORS[kind.reason] for kind in errors.TeacherError.__subclasses__()] == (
        errors.TeacherError.__subclasses__()
    )
    assert errors.TeacherError.reason not in errors.ERRORS


def test_every_class_is_a_direct_one_so_that_the_table_holds_it():
    for kind in errors.ERRORS.values():
        assert kind.__subclasses__() == []


def test_reasons_are_written_as_error_info_asks():
    # google.rpc.ErrorInfo: at most 63 characters of this form.
    for kind in ALL:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", kind.reason)


def test_the_tree_in_the_docstring_lists_every_class_with_its_status():
    lines = re.findall(r"^ +[|`]- (\w+) +([A-Z_]+) +\S", errors.__doc__ or "", flags=re.MULTILINE)

    assert lines == [(kind.__name__, kind.code.name) for kind in errors.ERRORS.values()]


def test_the_domain_is_the_package_of_the_contract():
    assert pb.DESCRIPTOR.package == errors.DOMAIN


# --- over a real connection -------------------------------------------------------------------


@BY_NAME
def test_an_error_comes_back_as_its_class_with_all_it_says(running, kind):
    error = kind("queue is full: 8 rows wait, limit 8", field="states.lengths", retry_after_s=1.25)

    for found in refuse(running, error):
        assert type(found) is kind
        assert str(found) == (f"queue is full: 8 rows wait, limit 8 (teacher at {running.address})")
        assert found.field == "states.lengths"
        assert found.retry_after_s == 1.25


@BY_NAME
def test_an_error_without_field_and_hint_comes_back_without_them(running, kind):
    for found in refuse(running, kind("no")):
        assert type(found) is kind
        assert found.field == ""
        assert found.retry_after_s is None


@BY_NAME
def test_details_are_readable_with_the_standard_library_for_them(running, kind):
    running.teacher.error = kind("no seed", field="seeds", retry_after_s=2.5)

    for failure in failures(running):
        assert isinstance(failure, grpc.Call)
        status = rpc_status.from_call(failure)
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        assert status.message == "no seed"
        assert status.code == kind.code.value[0]
        assert [
            packed.Unpack(message)
            for packed, message in zip(status.details, (info, request, retry), strict=True)
        ] == [True] * 3
        assert (info.domain, info.reason) == ("teacher.v1", kind.reason)
        assert [(v.field, v.description) for v in request.field_violations] == [
            ("seeds", "no seed")
        ]
        assert retry.retry_delay.ToMilliseconds() == 2500
        assert dict(failure.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"


@pytest.mark.parametrize("retry_after_s", [0.0, 0.001, 0.1, 1.001, 3600.0])
def test_a_hint_keeps_its_milliseconds(running, retry_after_s):
    for found in refuse(running, errors.OverloadedError("full", retry_after_s=retry_after_s)):
        assert found.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    "message",
    [
        "",
        "two\nlines\tand 100 %41 percent",
        "Gr\N{LATIN SMALL LETTER O WITH DIAERESIS}\N{LATIN SMALL LETTER SHARP S}e 4 MiB",
        "\N{SNOWMAN}\N{MUSICAL SYMBOL G CLEF}",
        "nul \0 and bell \a",
    ],
)
def test_a_message_comes_back_character_for_character(running, message):
    for found in refuse(running, errors.InvalidRequestError(message, field="states")):
        assert str(found) == f"{message} (teacher at {running.address})"
        assert type(found) is errors.InvalidRequestError


@pytest.mark.parametrize("character", ["x", "%", "\n", "\u00e9", "\N{MUSICAL SYMBOL G CLEF}"])
def test_a_message_of_any_length_arrives_without_its_middle(running, character):
    message = "the beginning " + character * 1_000_000 + " the mend"

    for found in refuse(running, errors.InvalidRequestError(message, field="states.token_ids")):
        assert type(found) is errors.InvalidRequestError
        assert found.field == "states.token_ids"
        assert str(found).startswith(f"the beginning {character}")
        assert " [...] " in str(found)
        assert str(found).endswith(f" the mend (teacher at {running.address})")


def test_a_message_with_characters_that_do_not_encode_arrives(running):
    # A file name that is not UTF-8, as os.fsdecode gives it.
    for found in refuse(running, errors.EngineError("no file 'a\udcff'")):
        assert str(found).startswith("no file 'a?'")


# --- statuses that gRPC makes -----------------------------------------------------------------


def test_nobody_at_the_address_is_unreachable_and_named():
    with socket.socket() as bound:
        # Bound but not listening: nobody else can take the port meanwhile.
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with grpc.insecure_channel(address, options=channel.CLIENT_OPTIONS) as connection:
            stub = teacher_pb2_grpc.TeacherServiceStub(connection)
            failure = failure_of(lambda: stub.GetLoad(pb.GetLoadRequest(), timeout=TIMEOUT_S))

    found = errors.from_rpc_error(failure, address=address)

    assert type(found) is errors.UnreachableError
    assert found.retryable
    assert f"(teacher at {address})" in str(found)


def test_a_message_above_the_limit_of_the_sender_is_too_large_and_not_overload(running):
    running.teacher.name_bytes = channel.MAX_MESSAGE_BYTES
    try:
        failure = failure_of(
            lambda: running.stub.DescribeTeacher(pb.DescribeTeacherRequest(), timeout=TIMEOUT_S)
        )
    finally:
        running.teacher.name_bytes = 0

    found = errors.from_rpc_error(failure, address=running.address)

    assert type(found) is errors.MessageTooLargeError
    assert not found.retryable


def test_a_message_above_the_limit_of_the_receiver_is_too_large(running):
    running.teacher.name_bytes = 5 * 1024 * 1024
    try:
        with grpc.insecure_channel(running.address) as connection:
            stub = teacher_pb2_grpc.TeacherServiceStub(connection)
            failure = failure_of(
                lambda: stub.DescribeTeacher(pb.DescribeTeacherRequest(), timeout=TIMEOUT_S)
            )
    finally:
        running.teacher.name_bytes = 0

    assert type(errors.from_rpc_error(failure, address="")) is errors.MessageTooLargeError


def test_a_request_above_the_limit_is_too_large(running):
    request = pb.ScoreStatesRequest(
        states=pb.Sequences(token_ids=bytes(channel.MAX_MESSAGE_BYTES + 1))
    )

    failure = failure_of(lambda: list(running.stub.ScoreStates(request, timeout=TIMEOUT_S)))

    assert type(errors.from_rpc_error(failure, address="")) is errors.MessageTooLargeError


def test_a_method_that_the_server_does_not_know_is_not_offered(running):
    method = running.channel.unary_unary("/teacher.v1.TeacherService/Distil")

    failure = failure_of(lambda: method(b"", timeout=TIMEOUT_S))

    assert type(errors.from_rpc_error(failure, address="")) is errors.NotOfferedError


def test_a_call_that_is_not_done_in_time_is_a_deadline_error(running):
    request = pb.SampleTrajectoriesRequest()

    failure = failure_of(lambda: list(running.stub.SampleTrajectories(request, timeout=0.05)))

    assert type(errors.from_rpc_error(failure, address="")) is errors.DeadlineError


def test_a_call_that_the_client_cancels_is_a_cancelled_error(running):
    call = running.stub.SampleTrajectories(pb.SampleTrajectoriesRequest(), timeout=TIMEOUT_S)
    call.cancel()

    failure = failure_of(lambda: list(call))

    assert type(errors.from_rpc_error(failure, address="")) is errors.CancelledError


def test_a_bug_of_the_server_is_the_plain_error_with_its_cause(running):
    failure = failure_of(lambda: list(running.stub.GetHead(pb.GetHeadRequest(), timeout=TIMEOUT_S)))

    found = errors.from_rpc_error(failure, address=running.address)

    assert type(found) is errors.TeacherError
    assert "a bug of the server" in str(found)
    assert not found.retryable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotOfferedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.MessageTooLargeError),
        (grpc.StatusCode.UNAVAILABLE, errors.UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
        (grpc.StatusCode.DATA_LOSS, errors.CorruptStreamError),
        (grpc.StatusCode.INTERNAL, errors.UnreachableError),
        (grpc.StatusCode.CANCELLED, errors.CancelledError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.ForbiddenError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.TeacherError),
        (grpc.StatusCode.ABORTED, errors.TeacherError),
        (grpc.StatusCode.UNKNOWN, errors.TeacherError),
    ],
)
def test_a_status_without_our_reason_is_told_by_its_code(running, code, kind):
    for found in abort(running, code, message="by a proxy"):
        assert type(found) is kind
        assert str(found) == f"by a proxy (teacher at {running.address})"
        assert found.field == ""
        assert found.retry_after_s is None


# --- details that are not ours ----------------------------------------------------------------


def status_bytes(*details: Message) -> bytes:
    status = status_pb2.Status(code=14, message="no")
    for detail in details:
        status.details.add().Pack(detail)
    return status.SerializeToString()


OURS = error_details_pb2.ErrorInfo(reason="DRAINING", domain="teacher.v1")
THEIRS = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="proxy.example")


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ((), errors.UnreachableError),
        ((OURS,), errors.DrainingError),
        ((THEIRS,), errors.UnreachableError),
        ((OURS, THEIRS), errors.DrainingError),
        ((THEIRS, OURS), errors.DrainingError),
        ((status_pb2.Status(code=3), OURS), errors.DrainingError),
        ((error_details_pb2.BadRequest(), OURS), errors.DrainingError),
        (
            (error_details_pb2.ErrorInfo(reason="OF_A_LATER_VERSION", domain="teacher.v1"),),
            errors.UnreachableError,
        ),
    ],
)
def test_only_a_reason_of_our_domain_decides(running, details, kind):
    code = grpc.StatusCode.UNAVAILABLE

    for found in abort(running, code, details=status_bytes(*details)):
        assert type(found) is kind


def spoiled_detail() -> bytes:
    status = status_pb2.Status.FromString(status_bytes(OURS))
    status.details[0].value = b"\xff" * 9
    return status.SerializeToString()


@pytest.mark.parametrize("details", [b"", b"\xff" * 40, status_bytes(OURS)[:-3], spoiled_detail()])
def test_details_that_do_not_parse_leave_the_code(running, details):
    for found in abort(running, grpc.StatusCode.UNAVAILABLE, details=details):
        assert type(found) is errors.UnreachableError
        assert str(found) == f"no (teacher at {running.address})"
