"""Errors that cross the wire, declared once for both sides.

    TeacherError
    |- InvalidRequestError      INVALID_ARGUMENT     the request is wrong; names the field
    |- NotOfferedError          UNIMPLEMENTED        this server does not offer it
    |- RevisionMismatchError    FAILED_PRECONDITION  other weights are served than expected
    |- TokenizerMismatchError   FAILED_PRECONDITION  another tokenizer than expected
    |- HeadMismatchError        FAILED_PRECONDITION  another head than expected
    |- OverloadedError          RESOURCE_EXHAUSTED   queue full; retry after a hint
    |- MessageTooLargeError     RESOURCE_EXHAUSTED   a message above the channel's limit
    |- DrainingError            UNAVAILABLE          the server is stopping; retry elsewhere
    |- UnreachableError         UNAVAILABLE          nobody answers, or the connection broke
    |- DeadlineError            DEADLINE_EXCEEDED    not done in time
    |- CorruptStreamError       DATA_LOSS            bytes altered, missing or out of order
    |- EngineError              INTERNAL             the forward failed; names the cause
    |- CancelledError           CANCELLED            the caller went away
    |- UnauthenticatedError     UNAUTHENTICATED      no or wrong credentials
    `- ForbiddenError           PERMISSION_DENIED    credentials do not allow it

The status alone is not enough (an oversized message and a full queue share RESOURCE_EXHAUSTED), so
the class travels as the reason of google.rpc.ErrorInfo. To add an error: add the class and its line
above; the tables below are read off the classes.
"""

from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

import protos.channel  # noqa: F401

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

DOMAIN = "teacher.v1"
DETAILS_KEY = "grpc-status-details-bin"
# The text goes over the wire as grpc-message (up to 3 bytes for one) and twice in the details, and
# gRPC drops the trailers, the details with them, from 8 KiB on.
_MAX_MESSAGE_BYTES = 1024
_CUT = " [...] "


class TeacherError(Exception):
    """Any failure of a call to a teacher.

    Args:
        message: loses its middle where it is longer than 1 KiB, so that it can travel.
        field: path of the request's field that is wrong; empty where there is none.
        retry_after_s: when the same call may succeed; None = unknown.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(_cut(message))
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(TeacherError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class NotOfferedError(TeacherError):
    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_OFFERED"


class RevisionMismatchError(TeacherError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "REVISION_MISMATCH"


class TokenizerMismatchError(TeacherError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "TOKENIZER_MISMATCH"


class HeadMismatchError(TeacherError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "HEAD_MISMATCH"


class OverloadedError(TeacherError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    retryable = True


class MessageTooLargeError(TeacherError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class DrainingError(TeacherError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    retryable = True


class UnreachableError(TeacherError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNREACHABLE"
    retryable = True


class DeadlineError(TeacherError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    retryable = True


class CorruptStreamError(TeacherError):
    code = grpc.StatusCode.DATA_LOSS
    reason = "CORRUPT_STREAM"
    retryable = True


class EngineError(TeacherError):
    code = grpc.StatusCode.INTERNAL
    reason = "ENGINE_FAILED"


class CancelledError(TeacherError):
    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class UnauthenticatedError(TeacherError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ForbiddenError(TeacherError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "FORBIDDEN"


ERRORS: dict[str, type[TeacherError]] = {
    error.reason: error for error in TeacherError.__subclasses__()
}
# What a status means when no reason came with it: it was made by gRPC itself, not by us.
_BY_CODE: dict[grpc.StatusCode, type[TeacherError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: NotOfferedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: MessageTooLargeError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.DATA_LOSS: CorruptStreamError,
    # A broken HTTP/2 stream; a failed forward comes with our reason.
    grpc.StatusCode.INTERNAL: UnreachableError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
}


def to_trailers(error: TeacherError) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata that carries the error: google.rpc.Status, and gRPC's retry hint."""
    details: list[any_pb2.Any] = [
        _pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    trailers: list[tuple[str, str | bytes]] = []
    if error.retry_after_s is not None:
        retry_after_ms = round(error.retry_after_s * 1000)
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_after_ms)
        details.append(_pack(retry))
        trailers.append(("grpc-retry-pushback-ms", str(retry_after_ms)))
    status = status_pb2.Status(code=error.code.value[0], message=str(error), details=details)
    return (*trailers, (DETAILS_KEY, status.SerializeToString()))


def from_rpc_error(error: grpc.RpcError, *, address: str) -> TeacherError:
    """The error that the other side raised, with the address it came from in its message."""
    # Every grpc.RpcError that a call raises is also the call itself.
    assert isinstance(error, grpc.Call)
    try:
        details = _read_details(error)
    except DecodeError:
        # Not a server of ours, or a proxy before it: the status is all that is known.
        details = _Details()
    kind = ERRORS.get(details.reason) or _BY_CODE.get(error.code(), TeacherError)
    return kind(
        f"{error.details() or ''} (teacher at {address})",
        field=details.field,
        retry_after_s=details.retry_after_s,
    )


@dataclass(slots=True)
class _Details:
    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None


def _read_details(error: grpc.Call) -> _Details:
    details = _Details()
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        for packed in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            request = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info) and info.domain == DOMAIN:
                details.reason = info.reason
            elif packed.Unpack(request) and request.field_violations:
                details.field = request.field_violations[0].field
            elif packed.Unpack(retry):
                details.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return details


def _cut(message: str) -> str:
    data = message.encode("utf-8", "replace")
    if len(data) <= _MAX_MESSAGE_BYTES:
        return data.decode("utf-8")
    half = (_MAX_MESSAGE_BYTES - len(_CUT)) // 2
    return data[:half].decode("utf-8", "ignore") + _CUT + data[-half:].decode("utf-8", "ignore")


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
