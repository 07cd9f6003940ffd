"""Turns request messages into engine requests, or into one clear error that names the field."""

import math
import time

import numpy as np
import torch
from masked_diffusion.families import DenoiserInfo
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.schedule import DEFAULT_EPS

from protos import errors
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.config import LimitsConfig
from teacher_server.engine.sequence import Capture, Request, Row, TargetSpec
from teacher_server.engine.stream import OutputStream

_INT32_BYTES = 4


class RequestParser:
    """Checks messages against what is served and the limits; pure but for the clock's deadline."""

    def __init__(
        self,
        info: DenoiserInfo,
        limits: LimitsConfig,
        *,
        model_dtype: names.DtypeName,
        revision: str,
    ) -> None:
        self._info = info
        self._limits = limits
        self._model_dtype = model_dtype
        self._revision = revision

    def score(
        self, message: pb.ScoreStatesRequest, stream: OutputStream, *, remaining_s: float | None
    ) -> Request:
        """Checks a request for one forward on each state."""
        self._check_expectations(message.context)
        states = self._sequences(message.states, field="states")
        chosen = None
        if message.HasField("positions"):
            chosen = self._positions(message.positions, states)
        request = self._request(
            message.context, "score", message.targets, stream, remaining_s=remaining_s
        )
        for index, (sequence_id, ids) in enumerate(zip(message.states.sequence_ids, states)):
            if chosen is None:
                self._check_predictable(
                    np.flatnonzero(ids == self._info.mask_token_id), sequence_id, "states"
                )
            x_L = torch.from_numpy(ids.astype(np.int64))
            row = Row(
                request=request,
                sequence_id=sequence_id,
                x_L=x_L,
                frozen_L=torch.zeros(len(ids), dtype=torch.bool),
                positions_M=None if chosen is None else chosen[index],
            )
            _add(request, row)
        return request

    def trajectories(
        self,
        message: pb.SampleTrajectoriesRequest,
        stream: OutputStream,
        *,
        remaining_s: float | None,
    ) -> Request:
        """Checks a request for sampling trajectories."""
        self._check_expectations(message.context)
        starts = self._sequences(message.start_states, field="start_states")
        sampler = self._sampler(message.sampler)
        request = self._request(
            message.context,
            "trajectory",
            message.targets,
            stream,
            remaining_s=remaining_s,
            sampler=sampler,
            capture=self._capture(message.capture, sampler.num_steps),
        )
        self._check_count(message.seeds, len(starts), field="seeds")
        frozen = self._frozen(message, starts)
        unmask_steps = self._resume(message, starts, sampler.num_steps)
        for index, (sequence_id, ids) in enumerate(zip(message.start_states.sequence_ids, starts)):
            open_positions = np.flatnonzero((ids == self._info.mask_token_id) & ~frozen[index])
            self._check_predictable(open_positions, sequence_id, "start_states")
            row = Row(
                request=request,
                sequence_id=sequence_id,
                x_L=torch.from_numpy(ids.astype(np.int64)),
                frozen_L=torch.from_numpy(frozen[index]),
                seed=message.seeds[index],
                num_steps=sampler.num_steps,
                unmask_steps_L=unmask_steps[index],
            )
            if message.HasField("resume"):
                row.step = message.resume.start_steps[index]
                row.last_collected_step = message.resume.last_collected_steps[index]
                row.num_forwards = message.resume.num_forwards[index]
                row.state_is_collected = row.last_collected_step == row.step
            _add(request, row)
        return request

    def _request(
        self,
        context: pb.RequestContext,
        kind: str,
        targets: pb.TargetSpec,
        stream: OutputStream,
        *,
        remaining_s: float | None,
        sampler: SamplerConfig | None = None,
        capture: Capture | None = None,
    ) -> Request:
        limit_s = self._limits.max_deadline_s
        time_left_s = limit_s if remaining_s is None else min(remaining_s, limit_s)
        return Request(
            request_id=context.request_id,
            client_id=context.client_id,
            kind="score" if kind == "score" else "trajectory",
            deadline_s=time.monotonic() + time_left_s,
            targets=self._targets(targets),
            capture=capture or Capture(),
            sampler=sampler,
            stream=stream,
        )

    def _check_expectations(self, context: pb.RequestContext) -> None:
        if context.expected_revision not in ("", self._revision):
            raise errors.RevisionMismatchError(
                f"expected_revision is {context.expected_revision}, served is {self._revision}; "
                "restart the run against these weights, or serve the ones it began with",
                field="context.expected_revision",
            )
        served = self._info.tokenizer_fingerprint
        if context.expected_tokenizer_fingerprint not in ("", served):
            raise errors.TokenizerMismatchError(
                f"expected_tokenizer_fingerprint is {context.expected_tokenizer_fingerprint}, "
                f"served is {served or 'none'}; student and teacher must share a tokenizer",
                field="context.expected_tokenizer_fingerprint",
            )

    def _sequences(self, message: pb.Sequences, *, field: str) -> list[np.ndarray]:
        lengths = np.asarray(message.lengths, dtype=np.int64)
        count = len(message.sequence_ids)
        if count > self._limits.max_sequences:
            raise _invalid(
                f"{field}.sequence_ids",
                f"has {count} sequences, limit {self._limits.max_sequences}; send fewer a request",
            )
        self._check_count(message.lengths, count, field=f"{field}.lengths")
        if len(set(message.sequence_ids)) != count:
            raise _invalid(f"{field}.sequence_ids", "must be unique in a request")
        if count and lengths.min() < 1:
            raise _invalid(f"{field}.lengths", f"must be positive, got {lengths.min()}")
        longest = int(lengths.max(initial=0))
        if longest > self._info.max_length:
            raise _invalid(
                f"{field}.lengths",
                f"a sequence has {longest} tokens, the teacher's maximum is "
                f"{self._info.max_length}; cut it into shorter ones",
            )
        total = int(lengths.sum())
        if total > self._limits.max_tokens:
            raise _invalid(
                f"{field}.lengths",
                f"{total} tokens in all, limit {self._limits.max_tokens}; send fewer a request",
            )
        if len(message.token_ids) != total * _INT32_BYTES:
            raise _invalid(
                f"{field}.token_ids",
                f"has {len(message.token_ids)} bytes, lengths sum to {total} ids of 4 bytes",
            )
        ids = np.frombuffer(message.token_ids, dtype="<i4")
        self._check_ids(ids, field=f"{field}.token_ids")
        return np.split(ids, np.cumsum(lengths)[:-1]) if count else []

    def _check_ids(self, ids: np.ndarray, *, field: str) -> None:
        bad = np.flatnonzero((ids < 0) | (ids >= self._info.vocab_size))
        if len(bad):
            raise _invalid(
                field,
                f"id {ids[bad[0]]} at index {bad[0]} is outside the vocabulary "
                f"[0, {self._info.vocab_size}); use the teacher's tokenizer",
            )

    def _check_predictable(self, positions: np.ndarray, sequence_id: int, field: str) -> None:
        first = self._info.num_invalid_leading_positions
        if len(positions) and positions[0] < first:
            raise _invalid(
                field,
                f"position {positions[0]} of sequence {sequence_id} needs a prediction, but this "
                f"teacher cannot predict the first {first}; begin sequences with a given token",
            )

    def _positions(self, message: pb.Positions, states: list[np.ndarray]) -> list[np.ndarray]:
        self._check_count(message.counts, len(states), field="positions.counts")
        counts = np.asarray(message.counts, dtype=np.int64)
        if len(counts) and counts.min() < 0:
            raise _invalid("positions.counts", f"must not be negative, got {counts.min()}")
        if len(message.positions) != counts.sum() * _INT32_BYTES:
            raise _invalid(
                "positions.positions",
                f"has {len(message.positions)} bytes, counts sum to {counts.sum()} of 4 bytes",
            )
        flat = np.frombuffer(message.positions, dtype="<i4")
        chosen = np.split(flat, np.cumsum(counts)[:-1]) if len(counts) else []
        for index, (positions, ids) in enumerate(zip(chosen, states)):
            if len(positions) and (np.any(np.diff(positions) <= 0) or positions[0] < 0):
                raise _invalid("positions.positions", f"sequence {index} is not ascending from 0")
            if len(positions) and positions[-1] >= len(ids):
                raise _invalid(
                    "positions.positions",
                    f"position {positions[-1]} is past sequence {index} of {len(ids)} tokens",
                )
            self._check_predictable(positions, index, "positions.positions")
        return chosen

    def _targets(self, message: pb.TargetSpec) -> TargetSpec:
        encoding = names.name_of(
            names.ENCODINGS,
            message.encoding or pb.ENCODING_HIDDEN,
            enum=pb.Encoding,
            field="targets.encoding",
        )
        default: dict[str, names.DtypeName] = {
            "hidden": self._model_dtype,
            "top_k": "f16",
            "logits": "f32",
        }
        dtype = default[encoding]
        if message.dtype:
            dtype = names.name_of(
                names.DTYPES, message.dtype, enum=pb.ValueDtype, field="targets.dtype"
            )
        if dtype == "bf16" and encoding != "hidden":
            raise _invalid(
                "targets.dtype",
                "BF16 is too coarse for log-probabilities (0.0625 nats); use F16 or F32",
            )
        temperatures = tuple(message.temperatures) or (1.0,)
        limit = self._limits.max_temperatures
        if len(temperatures) > limit:
            raise _invalid("targets.temperatures", f"has {len(temperatures)}, limit {limit}")
        for temperature in temperatures:
            if not (temperature > 0 and math.isfinite(temperature)):
                raise _invalid("targets.temperatures", f"must be > 0, got {temperature}")
        top_p = message.top_p or 1.0
        if not 0 < top_p <= 1:
            raise _invalid("targets.top_p", f"must be in (0, 1], got {top_p}")
        if encoding == "top_k" and not 1 <= message.top_k <= self._max_top_k:
            raise _invalid(
                "targets.top_k", f"must be in [1, {self._max_top_k}], got {message.top_k}"
            )
        return TargetSpec(
            encoding=encoding,
            dtype=dtype,
            top_k=message.top_k,
            top_p=top_p,
            temperatures=temperatures,
        )

    @property
    def _max_top_k(self) -> int:
        # A small vocabulary may always be asked for whole.
        return max(self._limits.max_top_k, self._info.padded_vocab_size)

    def _sampler(self, message: pb.SamplerSpec) -> SamplerConfig:
        algorithm = names.name_of(
            names.ALGORITHMS, message.algorithm, enum=pb.Algorithm, field="sampler.algorithm"
        )
        if not 1 <= message.num_steps <= self._limits.max_num_steps:
            raise _invalid(
                "sampler.num_steps",
                f"must be in [1, {self._limits.max_num_steps}], got {message.num_steps}",
            )
        try:
            return SamplerConfig(
                algorithm=algorithm,
                num_steps=message.num_steps,
                temperature=_rounded(message.temperature),
                top_k=message.top_k or None,
                top_p=_rounded(message.top_p) or None,
                alg_temp=_rounded(message.alg_temp),
                eps=_rounded(message.eps) or DEFAULT_EPS,
            )
        except ValueError as error:
            name = str(error).split()[0]
            raise _invalid(f"sampler.{name}", str(error).removeprefix(f"{name} ")) from error

    def _capture(self, message: pb.Capture, num_steps: int) -> Capture:
        kind = names.name_of(
            names.CAPTURES,
            message.kind or pb.CAPTURE_KIND_NONE,
            enum=pb.CaptureKind,
            field="capture.kind",
        )
        if kind == "every_n":
            if message.every_n_steps < 1:
                raise _invalid(
                    "capture.every_n_steps", f"must be >= 1, got {message.every_n_steps}"
                )
            return Capture(every_n_steps=message.every_n_steps)
        if kind == "none":
            return Capture()
        for step in message.steps:
            if not 0 <= step < num_steps:
                raise _invalid("capture.steps", f"must be in [0, {num_steps}), got {step}")
        return Capture(steps=frozenset(message.steps))

    def _frozen(
        self, message: pb.SampleTrajectoriesRequest, starts: list[np.ndarray]
    ) -> list[np.ndarray]:
        if not message.frozen:
            if message.HasField("resume"):
                raise _invalid("frozen", "must be given when a trajectory is resumed")
            return [ids != self._info.mask_token_id for ids in starts]
        total = sum(len(ids) for ids in starts)
        if len(message.frozen) != total:
            raise _invalid("frozen", f"has {len(message.frozen)} bytes for {total} tokens")
        flat = np.frombuffer(message.frozen, dtype=np.uint8)
        if flat.max(initial=0) > 1:
            raise _invalid("frozen", f"must hold 0 or 1, got {flat.max()}")
        return np.split(flat.astype(bool), np.cumsum([len(ids) for ids in starts])[:-1])

    def _resume(
        self, message: pb.SampleTrajectoriesRequest, starts: list[np.ndarray], num_steps: int
    ) -> list[np.ndarray]:
        if not message.HasField("resume"):
            return [np.full(len(ids), -1, dtype=np.int32) for ids in starts]
        resume = message.resume
        for name in ("start_steps", "last_collected_steps", "num_forwards"):
            self._check_count(getattr(resume, name), len(starts), field=f"resume.{name}")
        for step in resume.start_steps:
            if not 0 <= step <= num_steps:
                raise _invalid("resume.start_steps", f"must be in [0, {num_steps}], got {step}")
        total = sum(len(ids) for ids in starts)
        if len(resume.unmask_steps) != total * _INT32_BYTES:
            raise _invalid(
                "resume.unmask_steps",
                f"has {len(resume.unmask_steps)} bytes for {total} tokens of 4 bytes",
            )
        flat = np.frombuffer(resume.unmask_steps, dtype="<i4").astype(np.int32)
        return np.split(flat, np.cumsum([len(ids) for ids in starts])[:-1])

    def _check_count(self, values: object, count: int, *, field: str) -> None:
        actual = len(values)  # type: ignore[arg-type]
        if actual != count:
            raise _invalid(field, f"has {actual} entries for {count} sequences")


def _add(request: Request, row: Row) -> None:
    request.rows.append(row)
    request.num_rows += 1
    request.num_tokens += row.length


def _rounded(value: float) -> float:
    """The decimal that a client wrote: 0.7, not float32's 0.699999988."""
    return float(np.format_float_positional(np.float32(value), unique=True))


def _invalid(field: str, message: str) -> errors.InvalidRequestError:
    return errors.InvalidRequestError(f"{field} {message}", field=field)
