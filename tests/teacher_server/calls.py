"""What tests of the server say over the wire, and how they read the answers."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from google.rpc import error_details_pb2, status_pb2

from masked_diffusion.families import Denoiser, DenoiserInfo
from protos import channel as channel_options
from protos import codec, errors, parts, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from student_trainer.wire import sequences_message

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

TIMEOUT_S = 60.0


@contextlib.contextmanager
def connect(address: str) -> Iterator[teacher_pb2_grpc.TeacherServiceStub]:
    """A stub of its own connection."""
    with grpc.insecure_channel(address, options=channel_options.CLIENT_OPTIONS) as channel:
        yield teacher_pb2_grpc.TeacherServiceStub(channel)


def wait_until(condition: Callable[[], bool], *, limit_s: float = 20.0) -> None:
    """Polls until the condition holds; fails after the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.002)


def make_state(
    info: DenoiserInfo, *, length: int, num_masked: int, seed: int = 0, num_given: int = 1
) -> np.ndarray:
    """[L] int32 random ordinary ids, with masks anywhere behind the first `num_given`."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(3, info.vocab_size, length).astype(np.int32)
    positions = generator.permutation(np.arange(num_given, length))[:num_masked]
    ids[positions] = info.mask_token_id
    return ids


def filled_state(info: DenoiserInfo, token_id: int, *, length: int) -> np.ndarray:
    """[L] int32 of one id, with a mask at the end, so that it needs a forward."""
    ids = np.full(length, token_id, dtype=np.int32)
    ids[-1] = info.mask_token_id
    return ids


def score_request(
    states: Sequence[np.ndarray],
    *,
    targets: pb.TargetSpec | None = None,
    client_id: str = "",
    first_id: int = 0,
) -> pb.ScoreStatesRequest:
    """A request for one forward on each state; sequence ids count from `first_id`."""
    return pb.ScoreStatesRequest(
        context=pb.RequestContext(client_id=client_id),
        states=sequences_message(range(first_id, first_id + len(states)), states),
        targets=targets or pb.TargetSpec(encoding=pb.ENCODING_HIDDEN),
    )


def trajectory_request(
    starts: Sequence[np.ndarray],
    *,
    sampler: pb.SamplerSpec,
    capture: pb.Capture | None = None,
    targets: pb.TargetSpec | None = None,
    client_id: str = "",
    seed: int = 11,
) -> pb.SampleTrajectoriesRequest:
    """A request for trajectories; sequence ids count from 0, seeds from `seed`."""
    return pb.SampleTrajectoriesRequest(
        context=pb.RequestContext(client_id=client_id),
        start_states=sequences_message(range(len(starts)), starts),
        seeds=range(seed, seed + len(starts)),
        sampler=sampler,
        capture=capture or pb.Capture(kind=pb.CAPTURE_KIND_NONE),
        targets=targets or pb.TargetSpec(encoding=pb.ENCODING_HIDDEN),
    )


def resumed_after(
    request: pb.SampleTrajectoriesRequest,
    last: codec.StepTargets,
    *,
    frozen: np.ndarray,
    forwards_per_step: int = 1,
) -> pb.SampleTrajectoriesRequest:
    """The request for the rest of its one sequence, after the last record that arrived."""
    assert last.state is not None and last.unmask_steps is not None
    resumed = pb.SampleTrajectoriesRequest()
    resumed.CopyFrom(request)
    resumed.start_states.token_ids = last.state.astype("<i4").tobytes()
    resumed.frozen = frozen.astype(np.uint8).tobytes()
    resumed.resume.start_steps.append(last.step)
    resumed.resume.last_collected_steps.append(last.step)
    resumed.resume.unmask_steps = last.unmask_steps.astype("<i4").tobytes()
    resumed.resume.num_forwards.append(last.num_forwards - forwards_per_step)
    return resumed


def num_tokens(request: pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest) -> int:
    """Tokens of all its sequences."""
    if isinstance(request, pb.ScoreStatesRequest):
        return sum(request.states.lengths)
    return sum(request.start_states.lengths)


@dataclass(kw_only=True)
class Answers:
    """All that one stream said, in order."""

    targets: list[codec.StepTargets]
    trajectories: dict[int, pb.TrajectoryRecord]
    payloads: list[bytes]

    def of_sequence(self, sequence_id: int) -> list[codec.StepTargets]:
        """The targets of one sequence, in order."""
        return [record for record in self.targets if record.sequence_id == sequence_id]


def collect(
    messages: Iterable[pb.ScoreStatesResponse] | Iterable[pb.SampleTrajectoriesResponse],
) -> Answers:
    """Reads a stream to its end; a trajectory's record must come after all its parts."""
    assembler = parts.PayloadAssembler()
    answers = Answers(targets=[], trajectories={}, payloads=[])
    for message in messages:
        for part in message.parts:
            assert part.sequence_id not in answers.trajectories
            payload = assembler.add((part.sequence_id, part.step), part)
            if payload is not None:
                answers.payloads.append(bytes(payload))
                answers.targets.append(codec.decode_targets(payload))
        if isinstance(message, pb.SampleTrajectoriesResponse):
            for record in message.trajectories:
                assert record.sequence_id not in answers.trajectories
                answers.trajectories[record.sequence_id] = record
    assert not assembler.num_open
    return answers


def int32(data: bytes) -> np.ndarray:
    """[n] int32 of a buffer."""
    return np.frombuffer(data, dtype="<i4")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How a call failed."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None
    pushback_ms: str = ""


def refusal(call: Callable[..., object], *arguments: object) -> Refusal:
    """Makes a call that must fail; reads its status and details."""
    try:
        call(*arguments)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return _read_refusal(error)
    raise AssertionError("the call did not fail")


def _read_refusal(error: grpc.Call) -> Refusal:
    trailers = dict(error.trailing_metadata() or ())
    fields: dict[str, object] = {"pushback_ms": trailers.get("grpc-retry-pushback-ms", "")}
    details = trailers.get(errors.DETAILS_KEY, b"")
    assert isinstance(details, bytes)
    status = status_pb2.Status.FromString(details)
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            assert info.domain == "teacher.v1"
            fields["reason"] = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            fields["field"] = bad.field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo.FromString(detail.value)
            fields["retry_after_s"] = retry.retry_delay.ToMilliseconds() / 1000
    return Refusal(code=error.code(), message=error.details() or "", **fields)  # type: ignore[arg-type]


def hidden_of(denoiser: Denoiser, ids: np.ndarray) -> np.ndarray:
    """[L, D] float32, the denoiser's own hidden states of one sequence alone."""
    with torch.no_grad():
        hidden_BLD = denoiser.hidden_states(torch.from_numpy(ids.astype(np.int64))[None])
    return np.asarray(hidden_BLD[0].float().numpy())
