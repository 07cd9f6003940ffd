"""Turns request messages into engine requests, or into one clear error that names the field."""

import time
from typing import Literal

import numpy as np
import torch

from masked_diffusion.families import DenoiserInfo
from protos import codec, errors, parts
from protos import teacher_pb2 as pb
from teacher_server import uniform_requests
from teacher_server.config import LimitsConfig
from teacher_server.engine.sequence import Capture, Request, Row
from teacher_server.engine.stream import OutputWindow
from teacher_server.refusals import check_count, check_name, invalid, shown
from teacher_server.request_arrays import ArrayReader
from teacher_server.request_specs import SpecReader


class RequestParser:
    """Checks messages against what is served and the limits; pure but for the deadline's clock."""

    def __init__(
        self,
        info: DenoiserInfo,
        limits: LimitsConfig,
        *,
        model_dtype: codec.ValueDtype,
        revision: str,
    ) -> None:
        self._info = info
        self._limits = limits
        self._revision = revision
        self._arrays = ArrayReader(info, limits)
        self._specs = SpecReader(info, limits, model_dtype=model_dtype)

    def score(
        self, message: pb.ScoreStatesRequest, stream: OutputWindow, *, remaining_s: float | None
    ) -> Request:
        """Checks a request for one forward on each state."""
        self._check_context(message.context)
        states = self._arrays.sequences(message.states, field="states")
        chosen: list[np.ndarray] | None = None
        if message.HasField("positions"):
            chosen = self._arrays.positions(message.positions, states, field="positions")
        clean = self._arrays.clean(message, states)
        times = self._arrays.times(message.times, states, field="times")
        if self._info.noise == "uniform":
            uniform_requests.check_score(states, chosen, self._info)
        request = self._request("score", message, stream, remaining_s)
        for index, ids in enumerate(states):
            positions = chosen[index] if chosen is not None else None
            if positions is None:
                positions = np.flatnonzero(ids == self._info.mask_token_id)
                self._arrays.check_predictable(positions, index, field="states.token_ids")
            row = Row(
                request=request,
                sequence_id=message.states.sequence_ids[index],
                x_L=torch.from_numpy(ids.astype(np.int64)),
                clean_x_L=None
                if clean is None
                else torch.from_numpy(clean[index].astype(np.int64)),
                frozen_L=torch.zeros(len(ids), dtype=torch.bool),
                time=None if times is None else times[index],
                positions_M=None if chosen is None else positions,
                max_positions=len(positions),
            )
            _add(request, row)
        return request

    def trajectories(
        self,
        message: pb.SampleTrajectoriesRequest,
        stream: OutputWindow,
        *,
        remaining_s: float | None,
    ) -> Request:
        """Checks a request for sampling trajectories."""
        self._check_context(message.context)
        starts = self._arrays.sequences(message.start_states, field="start_states")
        request = self._request("trajectory", message, stream, remaining_s)
        request.sampler = self._specs.sampler(message.sampler)
        num_steps = request.sampler.num_steps
        request.capture = self._specs.capture(message.capture, num_steps=num_steps)
        check_count(message.seeds, len(starts), field="seeds")
        frozen = self._arrays.frozen(message, starts)
        resumes = self._arrays.resume_points(message, starts, request.sampler)
        if self._info.noise == "uniform":
            starts = uniform_requests.noisy_starts(message, starts, frozen, self._info)
        for index, ids in enumerate(starts):
            # P2 draws, and may mask again, whatever is not frozen; multinomial draws it all.
            draws_all = request.sampler.algorithm in ("p2", "multinomial")
            is_open = (ids == self._info.mask_token_id) | draws_all
            positions = np.flatnonzero(is_open & ~frozen[index])
            self._arrays.check_predictable(positions, index, field="start_states.token_ids")
            row = Row(
                request=request,
                sequence_id=message.start_states.sequence_ids[index],
                x_L=torch.from_numpy(ids.astype(np.int64)),
                frozen_L=torch.from_numpy(frozen[index]),
                seed=message.seeds[index],
                step=resumes[index].start_step,
                num_steps=num_steps,
                max_positions=len(positions),
                unmask_steps_L=resumes[index].unmask_steps_L,
                num_forwards=resumes[index].num_forwards,
                last_collected_step=resumes[index].last_collected_step,
            )
            _add(request, row)
        return request

    def _request(
        self,
        kind: Literal["score", "trajectory"],
        message: pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest,
        stream: OutputWindow,
        remaining_s: float | None,
    ) -> Request:
        limit_s = self._limits.max_deadline_s
        time_left_s = limit_s if remaining_s is None else min(remaining_s, limit_s)
        return Request(
            request_id=message.context.request_id,
            client_id=message.context.client_id,
            kind=kind,
            deadline_s=time.monotonic() + time_left_s,
            targets=self._specs.targets(message.targets),
            capture=Capture(),
            sampler=None,
            stream=stream,
        )

    def _check_context(self, context: pb.RequestContext) -> None:
        check_name(context.request_id, field="context.request_id")
        check_name(context.client_id, field="context.client_id")
        check_name(context.cohort.run_id, field="context.cohort.run_id")
        if context.expected_revision not in ("", self._revision):
            raise errors.RevisionMismatchError(
                f"expected_revision is {shown(context.expected_revision)}, served is "
                f"{self._revision}; restart the run against these weights, or serve the ones it "
                "began with",
                field="context.expected_revision",
            )
        served = self._info.tokenizer_fingerprint
        if context.expected_tokenizer_fingerprint not in ("", served):
            raise errors.TokenizerMismatchError(
                "expected_tokenizer_fingerprint is "
                f"{shown(context.expected_tokenizer_fingerprint)}, served is {served or 'none'}; "
                "student and teacher must share a tokenizer",
                field="context.expected_tokenizer_fingerprint",
            )


def _add(request: Request, row: Row) -> None:
    num_bytes = row.max_positions * request.targets.bytes_per_position
    if num_bytes > parts.MAX_PAYLOAD_BYTES:
        raise invalid(
            "targets.encoding",
            f"makes up to {num_bytes} bytes at the {row.max_positions} positions of sequence "
            f"{row.sequence_id}, limit {parts.MAX_PAYLOAD_BYTES}; use HIDDEN or TOP_K",
        )
    request.rows.append(row)
    request.num_rows += 1
    request.num_tokens += row.length
