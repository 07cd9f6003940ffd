"""Reads the ragged arrays of a request: ids, positions, frozen positions, resume points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masked_diffusion.families import DenoiserInfo
from masked_diffusion.samplers import SamplerConfig
from protos import teacher_pb2 as pb
from teacher_server.config import LimitsConfig
from teacher_server.refusals import check_count, invalid

_INT32 = np.dtype("<i4")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResumePoint:
    """Where one trajectory goes on."""

    start_step: int
    last_collected_step: int
    """-1 = none."""
    unmask_steps_L: np.ndarray
    """[L] int32; -1 = given or still masked."""
    num_forwards: int


class ArrayReader:
    """Checks arrays against what is served and the limits."""

    def __init__(self, info: DenoiserInfo, limits: LimitsConfig) -> None:
        self._info = info
        self._limits = limits

    def sequences(self, message: pb.Sequences, *, field: str) -> list[np.ndarray]:
        """The ids of each sequence, [L] int32, read-only."""
        count = len(message.sequence_ids)
        if count > self._limits.max_sequences:
            raise invalid(
                f"{field}.sequence_ids",
                f"has {count} sequences, limit {self._limits.max_sequences}; send fewer a request",
            )
        if len(set(message.sequence_ids)) != count:
            raise invalid(f"{field}.sequence_ids", "must be unique in a request")
        lengths = self._lengths(message, count, field=f"{field}.lengths")
        flat = _read_int32(message.token_ids, int(lengths.sum()), field=f"{field}.token_ids")
        bad = np.flatnonzero((flat < 0) | (flat >= self._info.vocab_size))
        if len(bad):
            raise invalid(
                f"{field}.token_ids",
                f"has id {flat[bad[0]]} at index {bad[0]}, outside the vocabulary "
                f"[0, {self._info.vocab_size}); use the teacher's tokenizer",
            )
        return _cut(flat, lengths)

    def _lengths(self, message: pb.Sequences, count: int, *, field: str) -> np.ndarray:
        check_count(message.lengths, count, field=field)
        lengths = np.asarray(message.lengths, dtype=np.int64)
        if lengths.min(initial=1) < 1:
            raise invalid(field, f"must be positive, got {lengths.min()}")
        longest = lengths.max(initial=0)
        if longest > self._info.max_length:
            raise invalid(
                field,
                f"has a sequence of {longest} tokens, the teacher's maximum is "
                f"{self._info.max_length}; cut it into shorter ones",
            )
        if lengths.sum() > self._limits.max_tokens:
            raise invalid(
                field,
                f"has {lengths.sum()} tokens in all, limit {self._limits.max_tokens}; send fewer "
                "a request",
            )
        return lengths

    def positions(
        self, message: pb.Positions, states: list[np.ndarray], *, field: str
    ) -> list[np.ndarray]:
        """The chosen positions of each state, [M] int32, ascending."""
        check_count(message.counts, len(states), field=f"{field}.counts")
        counts = np.asarray(message.counts, dtype=np.int64)
        if counts.min(initial=0) < 0:
            raise invalid(f"{field}.counts", f"must not be negative, got {counts.min()}")
        field = f"{field}.positions"
        chosen = _cut(_read_int32(message.positions, int(counts.sum()), field=field), counts)
        for index, (positions, ids) in enumerate(zip(chosen, states, strict=True)):
            if np.any(positions[1:] <= positions[:-1]) or (len(positions) and positions[0] < 0):
                raise invalid(
                    field, f"must ascend from 0, got {positions.tolist()[:8]} in sequence {index}"
                )
            if len(positions) and positions[-1] >= len(ids):
                raise invalid(
                    field,
                    f"has {positions[-1]}, past the end of sequence {index} of {len(ids)} tokens",
                )
            self.check_predictable(positions, index, field=field)
        return chosen

    def clean(
        self, message: pb.ScoreStatesRequest, states: list[np.ndarray]
    ) -> list[np.ndarray] | None:
        """The clean ids of each state, [L] int32; None where there are none."""
        if not message.clean_token_ids:
            return None
        field = "clean_token_ids"
        if self._info.attention != "block_causal":
            raise invalid(
                field,
                "must be empty: this teacher's attention is full, so it sees the state and no "
                "clean blocks before it",
            )
        longest = max((len(ids) for ids in states), default=0)
        if longest > self._limits.max_clean_length:
            raise invalid(
                field,
                f"comes with a state of {longest} tokens, limit {self._limits.max_clean_length} "
                "with clean ids; send shorter sequences, or raise --max-clean-length",
            )
        state = np.concatenate(states) if states else np.zeros(0, dtype=_INT32)
        flat = _read_int32(message.clean_token_ids, len(state), field=field)
        mask_token_id = self._info.mask_token_id
        bad = np.flatnonzero((flat < 0) | (flat >= self._info.vocab_size) | (flat == mask_token_id))
        if len(bad):
            raise invalid(
                field,
                f"has id {flat[bad[0]]} at index {bad[0]}; clean ids lie in the vocabulary "
                f"[0, {self._info.vocab_size}) and are never the mask id {mask_token_id}",
            )
        differs = np.flatnonzero((state != mask_token_id) & (state != flat))
        if len(differs):
            raise invalid(
                field,
                f"has id {flat[differs[0]]} at index {differs[0]}, where the state has "
                f"{state[differs[0]]}; a state differs from its clean ids only where it is masked",
            )
        return _cut(flat, np.asarray([len(ids) for ids in states], dtype=np.int64))

    def times(
        self, times: Sequence[float], states: list[np.ndarray], *, field: str
    ) -> list[float] | None:
        """The time of each state; None where there are none and none are needed."""
        if not len(times):
            if self._info.uses_time and states:
                raise invalid(
                    field, "must be given, one per state: this teacher is conditioned on the time"
                )
            return None
        check_count(times, len(states), field=field)
        for time in times:
            if not 0 <= time <= 1:
                raise invalid(field, f"must be in [0, 1], got {time}")
        return list(times)

    def check_predictable(self, positions: np.ndarray, index: int, *, field: str) -> None:
        """Refuses a prediction for a leading position that the teacher never learned."""
        first = self._info.num_invalid_leading_positions
        if len(positions) and positions[0] < first:
            raise invalid(
                field,
                f"needs a prediction at position {positions[0]} of sequence {index}, but this "
                f"teacher cannot predict the first {first}; begin sequences with a given token",
            )

    def frozen(
        self, message: pb.SampleTrajectoriesRequest, starts: list[np.ndarray]
    ) -> list[np.ndarray]:
        """What is never touched, [L] bool per sequence."""
        if not message.frozen:
            if message.HasField("resume") and starts:
                raise invalid("frozen", "must be given when a trajectory is resumed")
            return [ids != self._info.mask_token_id for ids in starts]
        lengths = np.asarray([len(ids) for ids in starts], dtype=np.int64)
        if len(message.frozen) != lengths.sum():
            raise invalid("frozen", f"has {len(message.frozen)} bytes for {lengths.sum()} tokens")
        flat = np.frombuffer(message.frozen, dtype=np.uint8)
        if flat.max(initial=0) > 1:
            raise invalid("frozen", f"must hold 0 or 1, got {flat.max()}")
        return _cut(flat.astype(bool), lengths)

    def resume_points(
        self,
        message: pb.SampleTrajectoriesRequest,
        starts: list[np.ndarray],
        sampler: SamplerConfig,
    ) -> list[ResumePoint]:
        """Where each trajectory goes on; the beginning for all where nothing is resumed."""
        if not message.HasField("resume"):
            return [
                ResumePoint(
                    start_step=0,
                    last_collected_step=-1,
                    unmask_steps_L=np.full(len(ids), -1, dtype=np.int32),
                    num_forwards=0,
                )
                for ids in starts
            ]
        resume = message.resume
        for name in ("start_steps", "last_collected_steps", "num_forwards"):
            check_count(getattr(resume, name), len(starts), field=f"resume.{name}")
        lengths = np.asarray([len(ids) for ids in starts], dtype=np.int64)
        flat = _read_int32(
            resume.unmask_steps, int(lengths.sum()), field="resume.unmask_steps"
        ).astype(np.int32)
        points = [
            ResumePoint(
                start_step=start_step,
                last_collected_step=last_collected_step,
                unmask_steps_L=unmask_steps_L,
                num_forwards=num_forwards,
            )
            for start_step, last_collected_step, unmask_steps_L, num_forwards in zip(
                resume.start_steps,
                resume.last_collected_steps,
                _cut(flat, lengths),
                resume.num_forwards,
                strict=True,
            )
        ]
        for point in points:
            _check_resume_point(point, sampler)
        return points


def _check_resume_point(point: ResumePoint, sampler: SamplerConfig) -> None:
    start_step, num_steps = point.start_step, sampler.num_steps
    _check_range(start_step, "start_steps", low=0, high=num_steps - 1)
    _check_range(point.last_collected_step, "last_collected_steps", low=-1, high=num_steps - 1)
    most = start_step * sampler.forwards_per_step
    _check_range(point.num_forwards, "num_forwards", low=0, high=most)
    for extreme in (point.unmask_steps_L.min(), point.unmask_steps_L.max()):
        _check_range(extreme, "unmask_steps", low=-1, high=start_step - 1)


def _check_range(value: int, name: str, *, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid(f"resume.{name}", f"must be in [{low}, {high}], got {value}")


def _read_int32(data: bytes, count: int, *, field: str) -> np.ndarray:
    if len(data) != count * _INT32.itemsize:
        raise invalid(field, f"has {len(data)} bytes, {count} numbers of 4 bytes are announced")
    return np.frombuffer(data, dtype=_INT32)


def _cut(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
