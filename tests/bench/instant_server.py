"""A teacher server with no model: real gRPC and real payloads, answered at once.

`python -m tests.bench.instant_server JSON`: serves the `InstantTargets` of these fields until
standard input ends, and first prints its address.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import numpy as np

from protos import channel, codec, parts, service, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage
from tests.bench import cores
from tests.bench.instant_targets import REVISION, InstantTargets

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

_ENCODINGS = {pb.ENCODING_HIDDEN: "hidden", pb.ENCODING_TOP_K: "top_k"}


class InstantServicer(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers what a trainer on noised data asks."""

    def __init__(self, targets: InstantTargets) -> None:
        self._targets = targets

    async def DescribeTeacher(  # noqa: N802
        self, request: pb.DescribeTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeTeacherResponse:
        targets = self._targets
        return pb.DescribeTeacherResponse(
            name="no model",
            revision=REVISION,
            vocab_size=targets.vocab_size,
            mask_token_id=targets.mask_token_id,
            max_length=targets.max_length,
            hidden_size=targets.hidden_size,
            encodings=list(_ENCODINGS),
            payload_version=codec.PAYLOAD_VERSION,
        )

    async def GetHead(  # noqa: N802
        self, request: pb.GetHeadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetHeadResponse]:
        targets = self._targets
        data = targets.head.tobytes()
        spec = pb.HeadSpec(
            dtype=pb.VALUE_DTYPE_F32,
            vocab_size=targets.vocab_size,
            hidden_size=targets.hidden_size,
            logit_scale=1.0,
        )
        for offset in range(0, len(data), parts.MESSAGE_BYTES):
            part = data[offset : offset + parts.MESSAGE_BYTES]
            yield pb.GetHeadResponse(
                head=spec,
                payload_bytes=len(data),
                offset=offset,
                data=part,
                crc32c=parts.crc32c(part),
            )

    async def ScoreStates(  # noqa: N802
        self, request: pb.ScoreStatesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[TargetsMessage]:
        encoding = _ENCODINGS[request.targets.encoding]
        ids = np.frombuffer(request.states.token_ids, dtype="<i4")
        ends = np.cumsum(request.states.lengths)
        states = zip(request.states.sequence_ids, np.split(ids, ends[:-1]), strict=True)
        # One after another, as an engine gives them: what is sent first is encoded first.
        payloads = (
            (
                sequence_id,
                0,
                codec.encode_targets(
                    self._targets.record(encoding, sequence_id=sequence_id, state_L=state_L)
                ),
            )
            for sequence_id, state_L in states
        )
        for message in parts.pack_parts(payloads):
            yield TargetsMessage(message)


async def _serve(targets: InstantTargets) -> None:
    server = grpc.aio.server(options=channel.SERVER_OPTIONS)
    service.add_to_server(InstantServicer(targets), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    # The pipe's other end closes however the bench ends.
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(grace=None)


def main() -> None:
    """Serves on another core than the trainer's: a real teacher is on another machine."""
    cores.pin(max)
    targets = InstantTargets(**json.loads(sys.argv[1]))
    for encoding in _ENCODINGS.values():
        # Makes the numbers, so that no answer waits for them.
        targets.distribution(encoding, 1)
    asyncio.run(_serve(targets))


if __name__ == "__main__":
    main()
