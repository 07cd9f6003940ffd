"""The service's two ends with `messages` in the place of protobuf's classes for its large answers.

Calls and messages are those of the contract: the generated ends may stand at the other side.
"""

from collections.abc import Callable, Mapping

from protos import channel, messages, teacher_pb2_grpc  # noqa: F401  (sets gRPC's environment)
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

_READERS: Mapping[str, Callable[[bytes], TargetsMessage]] = {
    "ScoreStates": messages.read_scores,
    "SampleTrajectories": messages.read_trajectories,
}


class TeacherStub(teacher_pb2_grpc.TeacherServiceStub):
    """The generated stub, whose streams of targets answer `TargetsMessage`."""

    def __init__(self, connection: grpc.Channel) -> None:
        super().__init__(connection)
        service = pb.DESCRIPTOR.services_by_name["TeacherService"]
        for name, reader in _READERS.items():
            request = getattr(pb, service.methods_by_name[name].input_type.name)
            # The stubs of grpc's types lack the argument that the generated code gives.
            call = connection.unary_stream(  # type: ignore[call-arg]
                f"/{service.full_name}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=reader,
                _registered_method=True,
            )
            setattr(self, name, call)


def add_to_server(
    servicer: teacher_pb2_grpc.TeacherServiceServicer, server: grpc.aio.Server
) -> None:
    """Serves the servicer, whose streams of targets yield `TargetsMessage`."""
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, _Registration(server))


class _Registration:
    """The server as the generated code sees it."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler]) -> None:
        """Does nothing: they come again, by their names."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        """Gives the streams of targets the serialiser of `messages`."""
        ours = dict(handlers)
        for name in _READERS:
            behaviour = handlers[name].unary_stream
            assert behaviour is not None
            ours[name] = grpc.unary_stream_rpc_method_handler(
                behaviour,
                request_deserializer=handlers[name].request_deserializer,
                response_serializer=messages.to_bytes,
            )
        generic = grpc.method_handlers_generic_handler(service_name, ours)
        self._server.add_generic_rpc_handlers((generic,))
        self._server.add_registered_method_handlers(service_name, ours)
