"""The blocking client: one or several teachers, deadlines, retry, and resume after the last step.

A stream that breaks is asked for again, at another address where there is one, from the last
(sequence, step) that arrived; what arrived is never asked for twice and never returned twice.
"""

import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from protos import codec, errors, parts
from protos import teacher_pb2 as pb
from student_trainer import wire
from student_trainer.replicas import Replica, Replicas, RetryPolicy

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)


@dataclass(slots=True, eq=False)
class _Progress:
    """What has arrived of one sequence's trajectory."""

    start: np.ndarray
    frozen: np.ndarray
    seed: int
    last: codec.StepTargets | None = None


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
        check_alive: Callable[[], None] | None = None,
    ) -> None:
        """Connects lazily.

        Args:
            check_alive: asked before a call is made again; it raises where that cannot help.
        """
        self._replicas = Replicas(addresses, retry or RetryPolicy(), check_alive=check_alive)
        self._client_id = client_id or f"client-{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._description: wire.TeacherDescription | None = None
        self._num_payload_bytes = 0

    @property
    def num_retries(self) -> int:
        """Calls that were made again."""
        return self._replicas.num_retries

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
        self._replicas.close()

    def describe(self) -> wire.TeacherDescription:
        """What is served; asked once, then remembered with its revision."""
        if self._description is None:

            def ask(replica: Replica) -> Generator[wire.TeacherDescription]:
                message = replica.stub.DescribeTeacher(
                    pb.DescribeTeacherRequest(), timeout=self._replicas.policy.call_timeout_s
                )
                yield wire.TeacherDescription.from_message(message)

            self._description = next(self._replicas.persist(ask))
        return self._description

    def head(self) -> wire.WireHead:
        """The output projection of the teacher described."""
        digest = self.describe().head_digest

        def ask(replica: Replica) -> Generator[wire.WireHead]:
            assembler = parts.PayloadAssembler()
            call = replica.stub.GetHead(
                pb.GetHeadRequest(expected_digest=digest),
                timeout=self._replicas.policy.call_timeout_s,
            )
            for message in call:
                data = assembler.add((0, 0), message)
                if data is not None:
                    yield wire.WireHead.from_bytes(message.head, data)
                    return
            raise errors.CorruptStreamError(f"the head ended early (teacher at {replica.name})")

        return next(self._replicas.persist(ask))

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        targets: wire.TargetSpec,
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> Iterator[codec.StepTargets]:
        """Targets of the states, in the order they finish.

        Args:
            states: [L] integer ids each.
            sequence_ids: unique names; the answers carry them.
            clean: the states without noise, [L] each; sent to a block-causal teacher alone, since
                no other sees them.
            times: of each state, in [0, 1]; needed where the teacher uses time.
            positions: [M] ascending integers each, which carry targets; None = the masked ones,
                which a teacher of uniform noise has none of.

        Yields:
            One record per state, with the state attached after its digest was checked.
        """
        missing = dict(zip(sequence_ids, states, strict=True))
        times_by_id = None if times is None else dict(zip(sequence_ids, times, strict=True))
        positions_by_id = (
            None if positions is None else dict(zip(sequence_ids, positions, strict=True))
        )
        description = self.describe()
        clean_of: dict[int, np.ndarray] = {}
        if clean is not None and description.is_block_causal:
            clean_of = dict(zip(sequence_ids, clean, strict=True))

        def ask(replica: Replica) -> Generator[codec.StepTargets]:
            request = pb.ScoreStatesRequest(
                context=self._context(description),
                states=wire.sequences_message(list(missing), list(missing.values())),
                targets=targets.to_message(),
                clean_token_ids=wire.int32_bytes([clean_of[i] for i in missing if i in clean_of]),
                times=() if times_by_id is None else [times_by_id[name] for name in missing],
                positions=None
                if positions_by_id is None
                else wire.positions_message([positions_by_id[name] for name in missing]),
            )
            call = replica.stub.ScoreStates(request, timeout=self._replicas.policy.call_timeout_s)
            for record in self._items(call, replica.name):
                assert isinstance(record, codec.StepTargets)
                state = missing.get(record.sequence_id)
                if state is None or codec.state_digest(state) != record.state_digest:
                    raise errors.CorruptStreamError(
                        f"targets of sequence {record.sequence_id} are not of the state sent "
                        f"(teacher at {replica.name})"
                    )
                _check_revision(record.revision, description, replica.name)
                del missing[record.sequence_id]
                yield replace(record, state=np.asarray(state, dtype=np.int32))
            if missing:
                raise errors.CorruptStreamError(
                    f"no targets for sequences {sorted(missing)[:5]} (teacher at {replica.name})"
                )

        if missing:
            yield from self._replicas.persist(ask)

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
    ) -> Generator[codec.StepTargets | wire.Trajectory]:
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

        def ask(replica: Replica) -> Generator[codec.StepTargets | wire.Trajectory]:
            request = pb.SampleTrajectoriesRequest(
                context=self._context(description),
                sampler=sampler.to_message(),
                capture=capture.to_message(),
                targets=targets.to_message(),
            )
            _fill_trajectories(request, running, sampler)
            call = replica.stub.SampleTrajectories(
                request, timeout=self._replicas.policy.call_timeout_s
            )
            for item in self._items(call, replica.name):
                progress = running.get(item.sequence_id)
                if progress is None:
                    raise errors.CorruptStreamError(
                        f"sequence {item.sequence_id} was not asked for (teacher at {replica.name})"
                    )
                _check_revision(item.revision, description, replica.name)
                if isinstance(item, codec.StepTargets):
                    progress.last = item
                else:
                    del running[item.sequence_id]
                yield item
            if running:
                raise errors.CorruptStreamError(
                    f"no end for sequences {sorted(running)[:5]} (teacher at {replica.name})"
                )

        if running:
            yield from self._replicas.persist(ask)

    def load(self) -> list[pb.GetLoadResponse]:
        """The load of every address, in order; asked once, without a retry."""
        return [self._load(replica) for replica in self._replicas]

    def _load(self, replica: Replica) -> pb.GetLoadResponse:
        request = pb.GetLoadRequest()
        try:
            return replica.stub.GetLoad(request, timeout=self._replicas.policy.call_timeout_s)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(error, address=replica.name) from error

    def _context(self, description: wire.TeacherDescription) -> pb.RequestContext:
        return pb.RequestContext(
            request_id=uuid.uuid4().hex[:12],
            client_id=self._client_id,
            expected_revision=description.revision,
            expected_tokenizer_fingerprint=description.tokenizer_fingerprint,
        )

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
                for record in message.trajectories:
                    yield wire.Trajectory.from_message(record)
        finally:
            call.cancel()  # type: ignore[attr-defined]
        if assembler.num_open:
            raise errors.CorruptStreamError(
                f"{assembler.num_open} records were cut (teacher at {address})"
            )


def _decode(
    payload: codec.Payload, part: parts.Part | pb.TargetsPart, address: str
) -> codec.StepTargets:
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
    request: pb.SampleTrajectoriesRequest,
    running: dict[int, _Progress],
    sampler: wire.SamplerSpec,
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
        resume.num_forwards.append(
            0 if last is None else last.num_forwards - sampler.forwards_per_step
        )
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
