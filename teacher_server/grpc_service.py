"""The service: validates, admits, streams. Runs in the event loop and never computes."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc

from protos import codec, errors, parts, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from protos.messages import TargetsMessage
from teacher_server import names, requests, responses
from teacher_server.call_record import CallRecord
from teacher_server.config import EngineConfig, LimitsConfig
from teacher_server.engine.host import EngineHost
from teacher_server.engine.sequence import Outcome, Request
from teacher_server.engine.stream import OutputStream
from teacher_server.facts import TeacherFacts
from teacher_server.refusals import shown


class TeacherServicer(teacher_pb2_grpc.TeacherServiceServicer):
    """Implements `teacher.v1.TeacherService`."""

    def __init__(
        self,
        facts: TeacherFacts,
        engine: EngineHost,
        *,
        engine_config: EngineConfig,
        limits: LimitsConfig,
    ) -> None:
        self._facts = facts
        self._engine = engine
        self._window_bytes = engine_config.stream_window_bytes
        self._limits = limits
        self._parser = requests.RequestParser(
            facts.info, limits, model_dtype=facts.dtype, revision=facts.revision
        )

    async def DescribeTeacher(
        self, request: pb.DescribeTeacherRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeTeacherResponse:
        info = self._facts.info
        return pb.DescribeTeacherResponse(
            name=info.name,
            family=info.family,
            revision=self._facts.revision,
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            vocab_size=info.vocab_size,
            padded_vocab_size=info.padded_vocab_size,
            mask_token_id=info.mask_token_id,
            pad_token_id=_or_minus_one(info.pad_token_id),
            bos_token_id=_or_minus_one(info.bos_token_id),
            eos_token_id=_or_minus_one(info.eos_token_id),
            max_length=info.max_length,
            attention=names.value_of(names.ATTENTIONS, info.attention),
            block_length=info.block_length or 0,
            noise=names.value_of(names.NOISES, info.noise),
            uses_time=info.uses_time,
            hidden_size=info.hidden_size,
            head_digest=self._facts.head_digest,
            num_invalid_leading_positions=info.num_invalid_leading_positions,
            num_parameters=info.num_parameters,
            dtype=names.value_of(names.DTYPES, self._facts.dtype),
            encodings=list(names.ENCODINGS),
            algorithms=list(names.algorithms_for(info.noise)),
            captures=list(names.CAPTURES),
            limits=pb.Limits(
                max_sequences=self._limits.max_sequences,
                max_tokens=self._limits.max_tokens,
                max_num_steps=self._limits.max_num_steps,
                max_top_k=self._limits.max_top_k,
                max_temperatures=self._limits.max_temperatures,
                stream_window_bytes=self._window_bytes,
            ),
            payload_version=codec.PAYLOAD_VERSION,
        )

    async def ScoreStates(
        self, request: pb.ScoreStatesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[TargetsMessage]:
        def parse(stream: OutputStream, remaining_s: float | None) -> Request:
            return self._parser.score(request, stream, remaining_s=remaining_s)

        served = self._serve(request.context, context, parse)
        # Closed with us: a generator that is merely dropped frees its rows some time later.
        async with contextlib.aclosing(served) as answers:
            async for answer in answers:
                yield TargetsMessage(answer.parts)

    async def SampleTrajectories(
        self, request: pb.SampleTrajectoriesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[TargetsMessage]:
        def parse(stream: OutputStream, remaining_s: float | None) -> Request:
            return self._parser.trajectories(request, stream, remaining_s=remaining_s)

        served = self._serve(request.context, context, parse)
        async with contextlib.aclosing(served) as answers:
            async for answer in answers:
                yield TargetsMessage(answer.parts, answer.trajectories)

    async def GetHead(
        self, request: pb.GetHeadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetHeadResponse]:
        if request.expected_digest not in ("", self._facts.head_digest):
            await _abort(
                context,
                errors.HeadMismatchError(
                    f"expected_digest is {shown(request.expected_digest)}, served is "
                    f"{self._facts.head_digest}; fetch the head of the teacher that is served now",
                    field="expected_digest",
                ),
            )
        info = self._facts.info
        spec = pb.HeadSpec(
            digest=self._facts.head_digest,
            dtype=names.value_of(names.DTYPES, self._facts.dtype),
            vocab_size=info.vocab_size,
            hidden_size=info.hidden_size,
            has_bias=self._facts.has_head_bias,
            logit_scale=1.0,
        )
        index = offset = 0
        # In a thread: from a device, or from another process, a copy takes its time.
        while (chunk := await asyncio.to_thread(self._engine.head_chunk, index)) is not None:
            yield pb.GetHeadResponse(
                head=spec,
                payload_bytes=self._facts.num_head_bytes,
                offset=offset,
                data=chunk,
                crc32c=parts.crc32c(chunk),
            )
            index, offset = index + 1, offset + len(chunk)

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
            peak_rss_bytes=sum(map(_peak_rss_bytes, [os.getpid(), *self._engine.process_ids])),
            num_forward_tokens=counters.num_forward_tokens,
            num_padded_tokens=counters.num_padded_tokens,
            num_payload_bytes=counters.num_payload_bytes,
            busy_s=counters.busy_s,
        )

    async def _serve(
        self,
        caller: pb.RequestContext,
        context: grpc.aio.ServicerContext,
        parse: Callable[[OutputStream, float | None], Request],
    ) -> AsyncGenerator[responses.Response, None]:
        """One request from validation to its log line, with the one place that frees its rows."""
        record = CallRecord(
            request_id=shown(caller.request_id) or uuid.uuid4().hex[:12],
            client_id=shown(caller.client_id) or context.peer(),
            cohort=caller.cohort if caller.HasField("cohort") else None,
        )
        stream = OutputStream(
            loop=asyncio.get_running_loop(),
            window_bytes=self._window_bytes,
            on_room=self._engine.wake,
        )
        admitted: Request | None = None
        try:
            request = record.request = parse(stream, context.time_remaining())
            request.request_id, request.client_id = record.request_id, record.client_id
            self._engine.submit(request)
            admitted = request
            async for response in responses.responses(stream):
                yield response
                stream.release(response.num_bytes)
                record.num_bytes += response.num_bytes
            record.status = "ok"
        except errors.TeacherError as error:
            record.status, record.error = error.reason.lower(), str(error)
            await _abort(context, error)
        except (asyncio.CancelledError, GeneratorExit):
            # The reader left while we waited, or while we were in yield.
            record.status = "cancelled"
            raise
        finally:
            if admitted is not None:
                self._engine.close(admitted)
            record.log()


async def _abort(context: grpc.aio.ServicerContext, error: errors.TeacherError) -> None:
    abort: Callable[..., Awaitable[None]] = context.abort
    await abort(error.code, str(error), trailing_metadata=errors.to_trailers(error))


def _or_minus_one(token_id: int | None) -> int:
    return -1 if token_id is None else token_id


def _peak_rss_bytes(process_id: int) -> int:
    """Of one process, 0 once it is gone."""
    # Not ru_maxrss: it survives exec, so a server that a large process started would report that.
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A process that has ended, but was not waited for, has no memory.
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return sum(peaks)
