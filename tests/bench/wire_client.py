"""`python -m tests.bench.wire_client JSON`: receives in every way in turns; prints JSON.

Reads the server's addresses from its standard input. Targets go all the way into the tensors of the
loss; raw messages and the socket's bytes are dropped as they come.
"""

import dataclasses
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from protos import channel as channel_options
from protos import parts
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.targets import RemoteTeacher
from tests.bench import cores
from tests.bench.wire_server import RAW_SERVICE

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One stream, from the request to its last byte."""

    num_bytes: int
    """Of payload."""
    wall_s: float
    cpu_s: float
    """Of both processes."""


class Receiver:
    """Both ends of every way, and their clocks."""

    def __init__(self, *, grpc_port: int, tcp_port: int, transfer_bytes: int) -> None:
        self._address = f"127.0.0.1:{grpc_port}"
        num_messages = max(1, round(transfer_bytes / parts.MESSAGE_BYTES))
        self._transfer_bytes = num_messages * parts.MESSAGE_BYTES
        self._channel = grpc.insecure_channel(self._address, options=channel_options.CLIENT_OPTIONS)
        self._stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{RAW_SERVICE}/Stream"
        )
        self._cpu_time: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{RAW_SERVICE}/CpuTime"
        )
        self._socket = socket.create_connection(("127.0.0.1", tcp_port))
        self._buffer = bytearray(parts.MESSAGE_BYTES)

    def close(self) -> None:
        """Closes connections."""
        self._socket.close()
        self._channel.close()

    def targets(self, encoding: wire.Encoding, *, num_states: int) -> Callable[[], int]:
        """A transfer of targets of about the same number of bytes."""
        client = TeacherClient(self._address)
        teacher = RemoteTeacher(client, spec=wire.TargetSpec(encoding=encoding))
        description = teacher.description
        state_L = np.full(description.max_length, description.mask_token_id, dtype=np.int32)

        def transfer() -> int:
            before = teacher.counters.num_bytes
            records = teacher.score([state_L] * num_states, sequence_ids=range(num_states))
            tensors = teacher.to_loss_targets(records)
            assert tensors.num_positions == num_states * len(state_L)
            return teacher.counters.num_bytes - before

        return transfer

    def raw(self) -> int:
        """Messages of a bare gRPC stream."""
        request = struct.pack("<q", self._transfer_bytes)
        return sum(len(message) for message in self._stream(request))

    def tcp(self) -> int:
        """Bytes of a socket."""
        self._socket.sendall(struct.pack("<q", self._transfer_bytes))
        num_bytes = 0
        while num_bytes < self._transfer_bytes:
            num_bytes += self._socket.recv_into(self._buffer)
        return num_bytes

    def measure(self, transfer: Callable[[], int]) -> Transfer:
        """Runs one transfer."""
        cpu_s, started_s = self._both_cpu_s(), time.monotonic()
        num_bytes = transfer()
        wall_s = time.monotonic() - started_s
        return Transfer(num_bytes, wall_s, self._both_cpu_s() - cpu_s)

    def _both_cpu_s(self) -> float:
        (server_s,) = struct.unpack("<d", self._cpu_time(b""))
        return time.process_time() + server_s


def main() -> None:
    """Measures as the argument says."""
    cores.pin(min)
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    addresses = json.loads(sys.stdin.readline())
    receiver = Receiver(**addresses, transfer_bytes=options["transfer_bytes"])
    ways: dict[str, Callable[[], int]] = {"raw": receiver.raw, "tcp": receiver.tcp}
    for encoding, num_states in options["num_states"].items():
        ways[encoding] = receiver.targets(encoding, num_states=num_states)
    transfers: dict[str, list[Transfer]] = {name: [] for name in ways}
    for index in range(options["num_rounds"] + 1):
        for name, way in ways.items():
            transfer = receiver.measure(way)
            if index:  # the first one warms up
                transfers[name].append(transfer)
    receiver.close()
    json.dump(
        {name: [dataclasses.asdict(one) for one in all_] for name, all_ in transfers.items()},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
