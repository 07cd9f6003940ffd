"""The service: validates, admits, streams. Runs in the event loop and never computes."""

import asyncio
import logging
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import grpc
from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser

from protos import codec, errors, parts, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.config import EngineConfig, LimitsConfig
from teacher_server.engine.encoder import to_values
from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Outcome, Request
from teacher_server.engine.stream import OutputStream, StreamEnd, TargetsReady, TrajectoryDone
from teacher_server.requests import RequestParser

logger = logging.getLogger(__name__)

_DTYPE_NAMES: dict[str, names.DtypeName] = {
    "torch.float32": "f32",
    "torch.float16": "f16",
    "torch.bfloat16": "bf16",
}


class TeacherServicer(teacher_pb2_grpc.TeacherServiceServicer):
    """Implements `teacher.v1.TeacherService`."""

    def __init__(
        self,
        denoiser: Denoiser,
        engine: Engine,
        *,
        revision: str,
        engine_config: EngineConfig,
        limits: LimitsConfig,
    ) -> None:
        self._denoiser = denoiser
        self._engine = engine
        self._revision = revision
        self._window_bytes = engine_config.stream_window_bytes
        self._limits = limits
        self._dtype = _DTYPE_NAMES[str(denoiser.head_weight.dtype)]
        self._head_digest = checkpoints.head_digest(denoiser)
        self._parser = RequestParser(
            denoiser.info, limits, model_dtype=self._dtype, revision=revision
        )

    async def DescribeTeacher(
        self, request: pb.DescribeTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeTeacherResponse:
        info = self._denoiser.info
        return pb.DescribeTeacherResponse(
            name=info.name,
            family=info.family,
            revision=self._revision,
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            vocab_size=info.vocab_size,
            padded_vocab_size=info.padded_vocab_size,
            mask_token_id=info.mask_token_id,
            pad_token_id=_or_minus_one(info.pad_token_id),
            bos_token_id=_or_minus_one(info.bos_token_id),
            eos_token_id=_or_minus_one(info.eos_token_id),
            max_length=info.max_length,
            attention=pb.ATTENTION_FULL,
            hidden_size=info.hidden_size,
            head_digest=self._head_digest,
            num_invalid_leading_positions=info.num_invalid_leading_positions,
            num_parameters=info.num_parameters,
            dtype=_value_of(names.DTYPES, self._dtype),
            encodings=list(names.ENCODINGS),
            algorithms=list(names.ALGORITHMS),
            captures=list(names.CAPTURES),
            limits=pb.Limits(
                max_sequences=self._limits.max_sequences,
                max_tokens=self._limits.max_tokens,
                max_num_steps=self._limits.max_num_steps,
                max_top_k=max(self._limits.max_top_k, info.padded_vocab_size),
                max_temperatures=self._limits.max_temperatures,
                stream_window_bytes=self._window_bytes,
            ),
            payload_version=codec.PAYLOAD_VERSION,
        )

    async def ScoreStates(
        self, request: pb.ScoreStatesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ScoreStatesResponse]:
        async for response in self._serve(request.context, context, self._parser.score, request):
            yield pb.ScoreStatesResponse(parts=response.parts)

    async def SampleTrajectories(
        self, request: pb.SampleTrajectoriesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SampleTrajectoriesResponse]:
        async for response in self._serve(
            request.context, context, self._parser.trajectories, request
        ):
            yield response

    async def GetHead(
        self, request: pb.GetHeadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetHeadResponse]:
        if request.expected_digest not in ("", self._head_digest):
            await _abort(
                context,
                errors.HeadMismatchError(
                    f"expected_digest is {request.expected_digest}, served is {self._head_digest}",
                    field="expected_digest",
                ),
            )
        spec, data = await asyncio.to_thread(self._head)
        for offset in range(0, len(data), parts.MESSAGE_BYTES):
            chunk = data[offset : offset + parts.MESSAGE_BYTES]
            yield pb.GetHeadResponse(
                head=spec,
                payload_bytes=len(data),
                offset=offset,
                data=chunk,
                crc32c=parts.crc32c(chunk),
            )

    async def SwapWeights(
        self, request_iterator: object, context: grpc.aio.ServicerContext
    ) -> pb.SwapWeightsResponse:
        await _abort(context, errors.NotOfferedError("SwapWeights is not offered by this server"))
        raise AssertionError("abort raises")

    async def GetLoad(
        self, request: pb.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetLoadResponse:
        load, counters = self._engine.load(), self._engine.snapshot()
        return pb.GetLoadResponse(
            backlog_s=load.backlog_s,
            num_live_rows=load.num_live_rows,
            num_waiting_rows=load.num_waiting_rows,
            draining=load.draining,
            num_admitted_rows=counters.num_admitted_rows,
            num_done_rows=counters.outcomes[Outcome.DONE],
            num_cancelled_rows=counters.outcomes[Outcome.CANCELLED],
            num_expired_rows=counters.outcomes[Outcome.EXPIRED],
            num_failed_rows=counters.outcomes[Outcome.FAILED],
            num_forwards=counters.num_forwards,
            num_forward_rows=counters.num_forward_rows,
            num_shared_forwards=counters.num_shared_forwards,
            num_target_positions=counters.num_target_positions,
            peak_rss_bytes=_peak_rss_bytes(),
            num_forward_tokens=counters.num_forward_tokens,
            num_padded_tokens=counters.num_padded_tokens,
            num_payload_bytes=counters.num_payload_bytes,
            busy_s=counters.busy_s,
        )

    def _head(self) -> tuple[pb.HeadSpec, bytes]:
        info, bias = self._denoiser.info, self._denoiser.head_bias
        weight = to_values(self._denoiser.head_weight[: info.vocab_size], self._dtype)
        data = weight.data.tobytes()
        if bias is not None:
            data += to_values(bias[: info.vocab_size], self._dtype).data.tobytes()
        spec = pb.HeadSpec(
            digest=self._head_digest,
            dtype=_value_of(names.DTYPES, self._dtype),
            vocab_size=info.vocab_size,
            hidden_size=info.hidden_size,
            has_bias=bias is not None,
            logit_scale=1.0,
        )
        return spec, data

    async def _serve(
        self,
        caller: pb.RequestContext,
        context: grpc.aio.ServicerContext,
        parse: Callable[..., Request],
        message: object,
    ) -> AsyncIterator[pb.SampleTrajectoriesResponse]:
        """One request from validation to its log line, with the one place that frees its rows."""
        started_s = time.monotonic()
        stream = OutputStream(
            loop=asyncio.get_running_loop(),
            window_bytes=self._window_bytes,
            on_room=self._engine.wake,
        )
        request: Request | None = None
        status, error = "cancelled", ""
        num_bytes = 0
        try:
            request = parse(message, stream, remaining_s=context.time_remaining())
            request.client_id = request.client_id or context.peer()
            self._engine.submit(request)
            async for response, taken_bytes in _responses(stream):
                yield response
                stream.release(taken_bytes)
                num_bytes += taken_bytes
            status = "ok"
        except errors.TeacherError as failure:
            status, error = failure.reason.lower(), str(failure)
            await _abort(context, failure)
        finally:
            # A reader may leave while we wait, yield or write: three different exceptions.
            if request is not None and status == "cancelled":
                self._engine.cancel(request)
            self._log(caller, context, request, status, error, num_bytes, started_s)

    def _log(
        self,
        caller: pb.RequestContext,
        context: grpc.aio.ServicerContext,
        request: Request | None,
        status: str,
        error: str,
        num_bytes: int,
        started_s: float,
    ) -> None:
        logger.info(
            "request id=%s client=%s kind=%s status=%s rows=%d tokens=%d forwards=%d "
            "positions=%d bytes=%d seconds=%.3f%s",
            caller.request_id or "-",
            caller.client_id or context.peer(),
            request.kind if request else "-",
            status,
            request.num_rows if request else 0,
            request.num_tokens if request else 0,
            request.num_forwards if request else 0,
            request.num_target_positions if request else 0,
            num_bytes,
            time.monotonic() - started_s,
            f" error={error!r}" if error else "",
        )


async def _responses(
    stream: OutputStream,
) -> AsyncIterator[tuple[pb.SampleTrajectoriesResponse, int]]:
    """Groups what is ready into messages of about 1 MiB; waits only when nothing is."""
    ended: StreamEnd | None = None
    while ended is None:
        targets: list[TargetsReady] = []
        done: list[TrajectoryDone] = []
        item = await stream.get()
        num_bytes = 0
        while True:
            if isinstance(item, StreamEnd):
                ended = item
                break
            if isinstance(item, TargetsReady):
                targets.append(item)
                num_bytes += len(item.payload)
            else:
                done.append(item)
            following = stream.get_ready() if num_bytes < parts.MESSAGE_BYTES else None
            if following is None:
                break
            item = following
        for response in _messages(targets, done):
            yield response, sum(len(part.data) for part in response.parts)
    if ended.error is not None:
        raise ended.error


def _messages(
    targets: list[TargetsReady], done: list[TrajectoryDone]
) -> Iterator[pb.SampleTrajectoriesResponse]:
    records = [
        pb.TrajectoryRecord(
            sequence_id=item.sequence_id,
            token_ids=item.token_ids,
            unmask_steps=item.unmask_steps,
            num_forwards=item.num_forwards,
            num_steps=item.num_steps,
            num_collected_steps=item.num_collected_steps,
            revision=item.revision,
        )
        for item in done
    ]
    payloads = ((item.sequence_id, item.step, item.payload) for item in targets)
    for message in parts.pack_parts(payloads):
        yield pb.SampleTrajectoriesResponse(parts=message)
    if records:
        # After all their parts: a trajectory's record is its last word.
        yield pb.SampleTrajectoriesResponse(trajectories=records)


async def _abort(context: grpc.aio.ServicerContext, error: errors.TeacherError) -> None:
    abort: Callable[..., Awaitable[None]] = context.abort
    await abort(error.code, str(error), trailing_metadata=errors.to_trailers(error))


def _value_of(table: object, name: str) -> int:
    return next(value for value, known in table.items() if known == name)  # type: ignore[attr-defined]


def _or_minus_one(token_id: int | None) -> int:
    return -1 if token_id is None else token_id


def _peak_rss_bytes() -> int:
    # Linux reports KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
