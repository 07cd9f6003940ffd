"""The blocking client: one or several teachers, deadlines, retry, and resume after the last step.

A stream that breaks is asked for again, at another address where there is one, from the last
(sequence, step) that arrived; what arrived is never asked for twice and never returned twice.
"""

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from protos import channel as channel_options
from protos import codec, errors, parts, teacher_pb2_grpc
from protos import teacher_pb2 as pb
from student_trainer import wire

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_FIRST_PENALTY_S = 2.0
_MAX_RETRY_HINT_S = 30.0
_MAX_PENALTY_S = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How long the client waits for teachers."""

    call_timeout_s: float = 600.0
    """Deadline of one call; a call that made progress is resumed after it."""
    give_up_after_s: float = 120.0
    """Time without any progress after which an error is raised and no longer mended."""


@dataclass(slots=True, eq=False)
class _Address:
    name: str
    stub: teacher_pb2_grpc.TeacherServiceStub
    channel: grpc.Channel
    num_in_flight: int = 0
    num_calls: int = 0
    penalty_s: float = _FIRST_PENALTY_S
    penalty_until_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Progress:
    """What has arrived of one sequence's trajectory."""

    start: np.ndarray
    frozen: np.ndarray
    seed: int
    last: codec.StepTargets | None = None


@dataclass(slots=True)
class _Attempts:
    """Backoff of one logical call; progress sets it back."""

    last_progress_s: float = field(default_factory=time.monotonic)
    backoff_s: float = _FIRST_BACKOFF_S

    def progressed(self) -> None:
        self.last_progress_s = time.monotonic()
        self.backoff_s = _FIRST_BACKOFF_S


class TeacherClient:
    """Calls teachers that serve the same weights; may be used by several threads.

    The revision found by `describe` is expected from every later answer, so one run never mixes
    teachers.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        retry: RetryPolicy | None = None,
        client_id: str = "",
    ) -> None:
        names = [addresses] if isinstance(addresses, str) else list(addresses)
        names = [name.strip() for text in names for name in text.split(",") if name.strip()]
        if not names:
            raise ValueError("teacher_address is empty; give HOST:PORT, or several with commas")
        self._retry = retry or RetryPolicy()
        self._client_id = client_id or f"client-{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._description: wire.TeacherDescription | None = None
        self._addresses = []
        for name in names:
            channel = grpc.insecure_channel(name, options=channel_options.CLIENT_OPTIONS)
            stub = teacher_pb2_grpc.TeacherServiceStub(channel)
            self._addresses.append(_Address(name, stub, channel))
        self._num_retries = 0
        self._num_payload_bytes = 0

    @property
    def num_retries(self) -> int:
        """Calls that were made again."""
        return self._num_retries

    @property
    def num_payload_bytes(self) -> int:
        """Bytes of targets that arrived."""
        return self._num_payload_bytes

    def __enter__(self) -> "TeacherClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Breaks calls in flight, which raise CancelledError, and closes the channels."""
        self._closed.set()
        for address in self._addresses:
            address.channel.close()

    def describe(self) -> wire.TeacherDescription:
        """What is served; asked once, then remembered with its revision."""
        if self._description is None:

            def ask(address: _Address) -> Generator[wire.TeacherDescription]:
                message = address.stub.DescribeTeacher(
                    pb.DescribeTeacherRequest(), timeout=self._retry.call_timeout_s
                )
                yield wire.TeacherDescription.from_message(message)

            self._description = next(self._persist(ask))
        return self._description

    def head(self) -> wire.WireHead:
        """The output projection of the teacher described."""
        digest = self.describe().head_digest

        def ask(address: _Address) -> Generator[wire.WireHead]:
            assembler = parts.PayloadAssembler()
            call = address.stub.GetHead(
                pb.GetHeadRequest(expected_digest=digest), timeout=self._retry.call_timeout_s
            )
            for message in call:
                data = assembler.add((0, 0), message)
                if data is not None:
                    yield wire.WireHead.from_bytes(message.head, data)
                    return
            raise errors.CorruptStreamError(f"the head ended early (teacher at {address.name})")

        return next(self._persist(ask))

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        targets: wire.TargetSpec,
    ) -> Iterator[codec.StepTargets]:
        """Targets of the states at their masked positions, in the order they finish.

        Args:
            states: [L] integer ids each.
            sequence_ids: unique names; the answers carry them.

        Yields:
            One record per state, with the state attached after its digest was checked.
        """
        missing = dict(zip(sequence_ids, states, strict=True))
        description = self.describe()

        def ask(address: _Address) -> Generator[codec.StepTargets]:
            request = pb.ScoreStatesRequest(
                context=self._context(description),
                states=wire.sequences_message(list(missing), list(missing.values())),
                targets=targets.to_message(),
            )
            call = address.stub.ScoreStates(request, timeout=self._retry.call_timeout_s)
            for record in self._items(call, address.name):
                assert isinstance(record, codec.StepTargets)
                state = missing.get(record.sequence_id)
                if state is None or codec.state_digest(state) != record.state_digest:
                    raise errors.CorruptStreamError(
                        f"targets of sequence {record.sequence_id} are not of the state sent "
                        f"(teacher at {address.name})"
                    )
                _check_revision(record.revision, description, address.name)
                del missing[record.sequence_id]
                yield replace(record, state=np.asarray(state, dtype=np.int32))
            if missing:
                raise errors.CorruptStreamError(
                    f"no targets for sequences {sorted(missing)[:5]} (teacher at {address.name})"
                )

        if missing:
            yield from self._persist(ask)

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        seeds: Sequence[int],
        sampler: wire.SamplerSpec,
        capture: wire.CaptureSpec,
        targets: wire.TargetSpec,
        frozen: Sequence[np.ndarray] | None = None,
    ) -> Iterator[codec.StepTargets | wire.Trajectory]:
        """Trajectories from start states: records of captured steps, then each one's end.

        Args:
            starts: [L] integer ids each, masked where tokens are to be generated.
            seeds: one per sequence.
            frozen: [L] bool each, never touched; None = every position that is not masked.
        """
        description = self.describe()
        masks = [ids != description.mask_token_id for ids in starts] if frozen is None else frozen
        running = {
            sequence_id: _Progress(start, mask, seed)
            for sequence_id, start, mask, seed in zip(
                sequence_ids, starts, masks, seeds, strict=True
            )
        }

        def ask(address: _Address) -> Generator[codec.StepTargets | wire.Trajectory]:
            request = pb.SampleTrajectoriesRequest(
                context=self._context(description),
                sampler=sampler.to_message(),
                capture=capture.to_message(),
                targets=targets.to_message(),
            )
            _fill_trajectories(request, running)
            call = address.stub.SampleTrajectories(request, timeout=self._retry.call_timeout_s)
            for item in self._items(call, address.name):
                progress = running.get(item.sequence_id)
                if progress is None:
                    raise errors.CorruptStreamError(
                        f"sequence {item.sequence_id} was not asked for (teacher at {address.name})"
                    )
                _check_revision(item.revision, description, address.name)
                if isinstance(item, codec.StepTargets):
                    progress.last = item
                else:
                    del running[item.sequence_id]
                yield item
            if running:
                raise errors.CorruptStreamError(
                    f"no end for sequences {sorted(running)[:5]} (teacher at {address.name})"
                )

        if running:
            yield from self._persist(ask)

    def load(self) -> list[pb.GetLoadResponse]:
        """The load of every address, in order; asked once, without a retry."""
        return [self._load(address) for address in self._addresses]

    def _load(self, address: _Address) -> pb.GetLoadResponse:
        request = pb.GetLoadRequest()
        try:
            return address.stub.GetLoad(request, timeout=self._retry.call_timeout_s)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error, address=address.name) from error

    def _context(self, description: wire.TeacherDescription) -> pb.RequestContext:
        return pb.RequestContext(
            request_id=uuid.uuid4().hex[:12],
            client_id=self._client_id,
            expected_revision=description.revision,
            expected_tokenizer_fingerprint=description.tokenizer_fingerprint,
        )

    def _persist(self, ask: Callable[[_Address], Generator[_T]]) -> Iterator[_T]:
        """Runs `ask`, again and again while its errors may be retried and time is left."""
        attempts = _Attempts()
        while True:
            with self._picked() as address:
                try:
                    with contextlib.closing(ask(address)) as items:
                        for item in items:
                            yield item
                            # After the yield: the time that the reader takes is not ours.
                            attempts.progressed()
                    address.penalty_s = _FIRST_PENALTY_S
                    return
                except grpc.RpcError as error:
                    failure = errors.from_rpc_error(error, address=address.name)
                except errors.CorruptStreamError as error:
                    failure = error
            self._wait_or_raise(failure, address, attempts)

    def _wait_or_raise(
        self, failure: errors.TeacherError, address: _Address, attempts: _Attempts
    ) -> None:
        waited_s = time.monotonic() - attempts.last_progress_s
        if not failure.retryable or self._closed.is_set():
            raise failure
        if waited_s > self._retry.give_up_after_s:
            raise self._gave_up(failure, waited_s) from failure
        # A hint is a hint: it neither makes us spin nor sleep past our own patience.
        hint_s = min(max(failure.retry_after_s or 0.0, 0.0), _MAX_RETRY_HINT_S)
        pause_s = max(hint_s, attempts.backoff_s * random.uniform(0.5, 1.5))
        attempts.backoff_s = min(attempts.backoff_s * 2, _MAX_BACKOFF_S)
        with self._lock:
            self._num_retries += 1
            address.penalty_until_s = time.monotonic() + address.penalty_s
            address.penalty_s = min(address.penalty_s * 2, _MAX_PENALTY_S)
        logger.warning("retry in_s=%.1f reason=%s error=%r", pause_s, failure.reason, str(failure))
        if self._closed.wait(pause_s):
            raise failure

    def _gave_up(self, failure: errors.TeacherError, waited_s: float) -> errors.TeacherError:
        names = ", ".join(known.name for known in self._addresses)
        mend = ""
        if isinstance(failure, errors.UnreachableError):
            mend = "; check distill.teacher_address and that teacher-server runs there"
        return type(failure)(f"no progress with {names} for {waited_s:.0f} s: {failure}{mend}")

    def _items(self, call: object, address: str) -> Iterator[codec.StepTargets | wire.Trajectory]:
        """Puts the parts of a stream together; cancels the call when the reader leaves early."""
        assembler = parts.PayloadAssembler()
        try:
            for message in call:  # type: ignore[attr-defined]
                for part in message.parts:
                    payload = assembler.add((part.sequence_id, part.step), part)
                    if payload is not None:
                        with self._lock:
                            self._num_payload_bytes += len(payload)
                        yield _decode(payload, part, address)
                for record in getattr(message, "trajectories", ()):
                    yield wire.Trajectory.from_message(record)
        finally:
            call.cancel()  # type: ignore[attr-defined]
        if assembler.num_open:
            raise errors.CorruptStreamError(
                f"{assembler.num_open} records were cut (teacher at {address})"
            )

    @contextlib.contextmanager
    def _picked(self) -> Iterator[_Address]:
        """The address with the fewest calls in flight, lately failed ones last."""
        if self._closed.is_set():
            raise errors.CancelledError("the client is closed")
        now_s = time.monotonic()
        with self._lock:
            address = min(
                self._addresses,
                key=lambda known: (
                    known.penalty_until_s > now_s,
                    known.num_in_flight,
                    known.num_calls,
                ),
            )
            address.num_in_flight += 1
            address.num_calls += 1
        try:
            yield address
        except ValueError as error:
            # What gRPC says to a call on a channel that `close` closed just now.
            if not self._closed.is_set():
                raise
            raise errors.CancelledError("the client is closed") from error
        finally:
            with self._lock:
                address.num_in_flight -= 1


def _decode(payload: bytes | bytearray, part: pb.TargetsPart, address: str) -> codec.StepTargets:
    try:
        record = codec.decode_targets(payload)
    except codec.PayloadError as error:
        raise errors.CorruptStreamError(f"{error} (teacher at {address})") from error
    if (record.sequence_id, record.step) != (part.sequence_id, part.step):
        raise errors.CorruptStreamError(
            f"payload of {(record.sequence_id, record.step)} came as "
            f"{(part.sequence_id, part.step)} (teacher at {address})"
        )
    return record


def _check_revision(revision: str, description: wire.TeacherDescription, address: str) -> None:
    if revision != description.revision:
        raise errors.RevisionMismatchError(
            f"the answer is of revision {revision}, the run began with {description.revision} "
            f"(teacher at {address})"
        )


def _fill_trajectories(
    request: pb.SampleTrajectoriesRequest, running: dict[int, _Progress]
) -> None:
    """Start states of what is left; each goes on at its last collected step, if it has one."""
    states = []
    resume = pb.ResumePoints()
    unmask_steps = []
    for progress in running.values():
        last = progress.last
        state = progress.start if last is None else last.state
        assert state is not None
        states.append(state)
        # That step runs again, since its draws are needed and its targets are here already.
        resume.start_steps.append(0 if last is None else last.step)
        resume.last_collected_steps.append(-1 if last is None else last.step)
        resume.num_forwards.append(0 if last is None else last.num_forwards - 1)
        so_far = None if last is None else last.unmask_steps
        unmask_steps.append(
            np.full(len(state), -1, dtype="<i4") if so_far is None else so_far.astype("<i4")
        )
    resume.unmask_steps = b"".join(steps.tobytes() for steps in unmask_steps)
    request.start_states.CopyFrom(wire.sequences_message(list(running), states))
    request.frozen = b"".join(
        np.asarray(progress.frozen, dtype=np.uint8).tobytes() for progress in running.values()
    )
    request.seeds.extend(progress.seed for progress in running.values())
    if any(progress.last is not None for progress in running.values()):
        request.resume.CopyFrom(resume)
