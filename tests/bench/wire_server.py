"""`python -m tests.bench.wire_server JSON`: three ways of sending the same bytes to one client.

Prints JSON with the addresses, and serves until standard input ends: targets by the service of
`instant_server`, bare messages of equal size by a service of its own, and a plain TCP socket.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator

from protos import channel, parts, service
from tests.bench import cores
from tests.bench.instant_server import InstantServicer
from tests.bench.instant_targets import InstantTargets

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

RAW_SERVICE = "bench.Raw"
_NUM_BYTES = struct.Struct("<q")
# As no stream of targets says the same twice: more than the processor's caches hold.
_MESSAGES = [os.urandom(parts.MESSAGE_BYTES) for _ in range(64)]


async def _stream(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """As many messages of 1 MiB as the request says."""
    (num_bytes,) = _NUM_BYTES.unpack(request)
    for index in range(num_bytes // parts.MESSAGE_BYTES):
        yield _MESSAGES[index % len(_MESSAGES)]


async def _cpu_time(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Processor time of this process so far."""
    return struct.pack("<d", time.process_time())


def _handlers() -> grpc.GenericRpcHandler:
    # No serialisers: requests and answers are bytes.
    return grpc.method_handlers_generic_handler(
        RAW_SERVICE,
        {
            "Stream": grpc.unary_stream_rpc_method_handler(_stream),
            "CpuTime": grpc.unary_unary_rpc_method_handler(_cpu_time),
        },
    )


def _serve_socket(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        while request := connection.recv(_NUM_BYTES.size, socket.MSG_WAITALL):
            (num_bytes,) = _NUM_BYTES.unpack(request)
            for index in range(num_bytes // parts.MESSAGE_BYTES):
                connection.sendall(_MESSAGES[index % len(_MESSAGES)])


async def _serve(targets: InstantTargets) -> None:
    server = grpc.aio.server(options=channel.SERVER_OPTIONS)
    service.add_to_server(InstantServicer(targets), server)
    server.add_generic_rpc_handlers((_handlers(),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve_socket, args=(listener,), daemon=True).start()
        addresses = {"grpc_port": grpc_port, "tcp_port": listener.getsockname()[1]}
        print(json.dumps(addresses), flush=True)
        # The pipe's other end closes however the bench ends.
        await asyncio.to_thread(sys.stdin.read)
    await server.stop(grace=None)


def main() -> None:
    """Serves from another core than the client's."""
    cores.pin(max)
    targets = InstantTargets(**json.loads(sys.argv[1]))
    for encoding in ("hidden", "top_k"):
        # Makes the numbers, so that no answer waits for them.
        targets.distribution(encoding, 1)
    asyncio.run(_serve(targets))


if __name__ == "__main__":
    main()
