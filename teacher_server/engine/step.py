"""One denoising step of a batch: forward, encode what is captured, sample, advance each row."""

import dataclasses
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.samplers import RowBatch, SamplerConfig, decide, get_sampler
from protos import codec
from teacher_server.engine import encoder
from teacher_server.engine.block_runner import BlockRunner
from teacher_server.engine.counters import EngineCounters
from teacher_server.engine.forward import hidden_states_of
from teacher_server.engine.head_pass import HeadPass, HeadRow
from teacher_server.engine.model_runner import DenoiserLostError, ModelRunner
from teacher_server.engine.sequence import Row
from teacher_server.engine.stream import TargetsReady, TrajectoryDone

# Idle steps passed in one go, about a millisecond each for a group of rows.
_MAX_IDLE_STEPS = 8
_MAX_GROUP_ROWS = 64


class ForwardFailedError(RuntimeError):
    """The forward of a batch raised. Rows of another batch may fare better."""


class DenoisingStep:
    """Advances rows by one step; knows nothing of queues, clients and time limits."""

    def __init__(
        self,
        runner: ModelRunner,
        counters: EngineCounters,
        *,
        revision: str,
        max_cache_bytes: int = 0,
    ) -> None:
        self._runner = runner
        is_blocked = runner.denoiser.info.attention == "block_causal"
        self._blocks = (
            BlockRunner(runner.denoiser, max_cache_bytes=max_cache_bytes) if is_blocked else None
        )
        self._counters = counters
        self._revision = revision
        self._info = runner.denoiser.info

    def seek(self, rows: Iterable[Row]) -> list[Row]:
        """Moves rows towards their next step that needs a forward; returns the finished ones.

        Idle steps, at which no token can move and nothing new would be captured, are passed
        without a forward; the state does not change on them. A call passes a few of them at most,
        so that a long idle stretch never holds other rows up: rows that are still not `is_ready`
        go on at the next call.
        """
        # Rows of similar length side by side: little padding.
        seeking = sorted(rows, key=lambda row: row.length)
        finished: list[Row] = []
        for _ in range(_MAX_IDLE_STEPS):
            going = list[Row]()
            for row in seeking:
                (finished if self._is_over(row) else going).append(row)
            for group in _groups(going):
                for start in range(0, len(group), _MAX_GROUP_ROWS):
                    self._decide(group[start : start + _MAX_GROUP_ROWS])
            seeking = [row for row in going if not row.is_ready]
        for row in finished:
            if row.request.kind == "trajectory":
                self._emit_trajectory(row)
            elif not row.num_forwards:
                nothing = torch.zeros(row.length, self._info.hidden_size)
                self._emit_targets(row, HeadRow(hidden_LD=nothing, spec=row.request.targets))
        return finished

    def run(self, batch: Sequence[Row]) -> None:
        """Runs one forward for all rows and advances each; every row `is_ready` before.

        Raises:
            ForwardFailedError: the forward raised; no row has changed.
        """
        started_s = time.monotonic()
        try:
            hidden = self._hidden_states(batch)
        except DenoiserLostError:
            raise
        except Exception as error:
            raise ForwardFailedError(f"{type(error).__name__}: {error}") from error
        self._count(batch, time.monotonic() - started_s)
        for row in batch:
            row.num_forwards += row.forwards_per_step
            row.request.num_forwards += row.forwards_per_step
        hidden_of = dict(zip(map(id, batch), hidden, strict=True))
        for rows in _groups(batch):
            self._finish(rows, [hidden_of[id(row)] for row in rows])
        for row in batch:
            row.step += 1
            row.is_ready = False

    def forget(self, row: Row) -> None:
        """Frees what is held for a row that ended."""
        if self._blocks is not None:
            self._blocks.drop(row)

    @property
    def num_cache_bytes(self) -> int:
        """Bytes of keys and values held for live rows; 0 with full attention."""
        return 0 if self._blocks is None else self._blocks.num_cache_bytes

    @property
    def has_blocks(self) -> bool:
        """Whether the denoiser is block-causal."""
        return self._blocks is not None

    def _hidden_states(self, batch: Sequence[Row]) -> list[Tensor]:
        """[L, D] of each row; with blocks, undefined where neither targets nor sampler look."""
        # The cache has no unconditional stream: guided rows run whole.
        if self._blocks is None or all(row.guidance_scale for row in batch):
            return hidden_states_of(self._runner, batch, times=[self._time(row) for row in batch])
        if not any(row.guidance_scale for row in batch):
            return self._blocks.hidden_states(batch, [self._needed(row) for row in batch])
        parts = {
            is_guided: [row for row in batch if bool(row.guidance_scale) == is_guided]
            for is_guided in (False, True)
        }
        hidden = {
            id(row): hidden_LD
            for rows in parts.values()
            for row, hidden_LD in zip(rows, self._hidden_states(rows), strict=True)
        }
        return [hidden[id(row)] for row in batch]

    def _needed(self, row: Row) -> Tensor:
        """[L] bool, where the row's targets are and where its sampler decides."""
        needed_L = torch.zeros(row.length, dtype=torch.bool)
        if row.captures_now:
            needed_L |= self._captured(row)
        return needed_L if row.decided_L is None else needed_L | row.decided_L

    def _is_over(self, row: Row) -> bool:
        if row.request.kind == "score":
            # Without positions there is nothing that a forward could tell.
            return row.num_forwards > 0 or row.max_positions == 0
        return row.step >= row.num_steps or not bool(self._open(row).any())

    def _open(self, row: Row) -> Tensor:
        """[L] bool, the positions still to be unmasked; with uniform noise, all not frozen."""
        if self._info.noise == "uniform":
            return ~row.frozen_L
        return (row.x_L == self._info.mask_token_id) & ~row.frozen_L

    def _decide(self, rows: Sequence[Row]) -> None:
        """Finds where the sampler decides at each row's step; passes the step where it is idle."""
        config = rows[0].request.sampler
        if config is None:
            for row in rows:
                row.is_ready = True
            return
        decided_BL = get_sampler(config.algorithm).positions_to_decide(
            self._row_batch(rows), config, mask_token_id=self._info.mask_token_id
        )
        for row, decided_L in zip(rows, decided_BL, strict=True):
            row.decided_L = decided_L[: row.length]
            is_idle = not _decides(row)
            if row.step <= row.last_collected_step and row.captures_now:
                # Sent before the stream broke; an idle step's forward is not run again.
                row.state_is_collected = True
                row.num_forwards += is_idle * row.forwards_per_step
            row.is_ready = not is_idle or row.captures_now
            row.step += not row.is_ready

    def _count(self, batch: Sequence[Row], forward_s: float) -> None:
        counters = self._counters
        counters.num_forwards += 1
        num_rows = sum(row.forwards_per_step for row in batch)
        num_tokens = sum(row.step_tokens for row in batch)
        counters.num_forward_rows += num_rows
        counters.num_forward_tokens += num_tokens
        counters.num_padded_tokens += self._num_computed_tokens(batch, num_rows, num_tokens)
        counters.num_shared_forwards += len({row.request.client_id for row in batch}) > 1
        counters.num_mixed_forwards += len({row.request.kind for row in batch}) > 1
        counters.forward_s += forward_s

    def _num_computed_tokens(self, batch: Sequence[Row], num_rows: int, num_tokens: int) -> int:
        if self._runner.packs_rows:
            return num_tokens
        fixed = self._runner.fixed
        if fixed is not None and (not self.has_blocks or batch[0].guidance_scale):
            lengths = [(row.forwards_per_step, fixed.shape_of(row.length).length) for row in batch]
            return sum(num_forwards * length for num_forwards, length in lengths)
        return num_rows * max(row.length for row in batch)

    def _finish(self, rows: Sequence[Row], hidden: Sequence[Tensor]) -> None:
        """Emits the targets of rows that a sampler takes together, then samples their next states.

        Scores, and idle steps that were only captured, sample nothing.
        """
        started_s = time.monotonic()
        head_rows = [
            HeadRow(
                hidden_LD=hidden_LD,
                captured_L=self._captured(row)
                if row.captures_now and row.request.targets.encoding != "hidden"
                else None,
                spec=row.request.targets,
                decided_L=row.decided_L,
            )
            for row, hidden_LD in zip(rows, hidden, strict=True)
        ]
        head_pass = HeadPass(self._runner, head_rows)
        self._counters.num_head_positions += head_pass.num_positions
        deciding = [row for row in rows if _decides(row)]
        config = rows[0].request.sampler
        if config is None or not deciding:
            for _ in head_pass.decided_logits():
                pass
            self._count_times(head_pass, emit_s=self._emit_captured(rows, head_rows))
            return
        sampler, batch = get_sampler(config.algorithm), self._row_batch(deciding)
        decided_BL = _pad(
            [row.decided_L for row in deciding if row.decided_L is not None], value=False
        )
        decisions = decide(
            sampler,
            batch,
            config,
            decided_BL=decided_BL,
            logits_chunks=head_pass.decided_logits(suppress_mask_token=config.suppress_mask_token),
        )
        emit_s = self._emit_captured(rows, head_rows)
        x_BL = sampler.update(
            batch,
            config,
            mask_token_id=self._info.mask_token_id,
            decided_BL=decided_BL,
            tokens_BL=decisions.tokens_BL,
            confidence_BL=decisions.confidence_BL,
        )
        for index, row in enumerate(deciding):
            self._advance(row, x_BL[index, : row.length].clone())
        self._count_times(head_pass, emit_s=emit_s, all_s=time.monotonic() - started_s)

    def _count_times(self, head_pass: HeadPass, *, emit_s: float, all_s: float = 0.0) -> None:
        """What is neither head nor encoding is sampling, where there is any."""
        self._counters.head_s += head_pass.head_s
        self._counters.encode_s += head_pass.encode_s + emit_s
        left_s = all_s - head_pass.head_s - head_pass.encode_s - emit_s
        self._counters.sample_s += max(0.0, left_s)

    def _emit_captured(self, rows: Sequence[Row], head_rows: Sequence[HeadRow]) -> float:
        """Sends the targets; returns the seconds that it took."""
        started_s = time.monotonic()
        for row, head_row in zip(rows, head_rows, strict=True):
            if row.captures_now:
                self._emit_targets(row, head_row)
        return time.monotonic() - started_s

    def _emit_targets(self, row: Row, head_row: HeadRow) -> None:
        positions_M = self._positions(row)
        is_score = row.request.kind == "score"
        ids = row.x_L.to(torch.int32).numpy()
        row.num_collected_steps += 1
        row.state_is_collected = True
        payload = codec.encode_targets(
            codec.StepTargets(
                sequence_id=row.sequence_id,
                step=row.step,
                time=self._time(row),
                revision=self._revision,
                tokenizer_fingerprint=self._info.tokenizer_fingerprint,
                state=None if is_score else ids,
                state_digest=codec.state_digest(ids),
                unmask_steps=row.unmask_steps_L,
                num_forwards=row.num_forwards,
                positions=positions_M,
                distribution=self._distribution(row, head_row, positions_M),
            )
        )
        for reader in row.readers:
            self._counters.num_target_positions += len(positions_M)
            self._counters.num_payload_bytes += len(payload)
            reader.request.num_target_positions += len(positions_M)
            reader.request.stream.put(TargetsReady(row.sequence_id, row.step, payload))

    def _distribution(
        self, row: Row, head_row: HeadRow, positions_M: np.ndarray
    ) -> codec.Distribution:
        spec = row.request.targets
        if spec.encoding == "hidden":
            indices_M = torch.from_numpy(positions_M.astype(np.int64))
            hidden_MD = head_row.hidden_LD[indices_M.to(head_row.hidden_LD.device)]
            return encoder.encode_hidden(hidden_MD, dtype=spec.dtype)
        if not len(positions_M):
            # No position, no chunk of logits: the encoding of nothing.
            return encoder.encode_by_head(torch.zeros(0, self._info.vocab_size), spec)
        return head_row.distribution

    def _captured(self, row: Row) -> Tensor:
        """[L] bool, where the row's targets are."""
        captured_L = torch.zeros(row.length, dtype=torch.bool)
        captured_L[torch.from_numpy(self._positions(row).astype(np.int64))] = True
        return captured_L

    def _positions(self, row: Row) -> np.ndarray:
        if row.positions_M is not None:
            return row.positions_M
        positions_M = np.flatnonzero(self._open(row).numpy()).astype(np.int32)
        block_length = self._info.block_length
        if block_length is None or row.request.kind == "score" or not len(positions_M):
            return positions_M
        # Later blocks are not predictable yet: the masks before them would be seen as context.
        end = (positions_M[0] // block_length + 1) * block_length
        return positions_M[positions_M < end]

    def _time(self, row: Row) -> float:
        if row.time is not None:
            return row.time
        if row.request.sampler is None:
            return float((row.x_L == self._info.mask_token_id).float().mean())
        times_S = get_sampler(row.request.sampler.algorithm).times(row.request.sampler)
        return float(times_S[row.step])

    def _advance(self, row: Row, next_x_L: Tensor) -> None:
        changed_L = next_x_L != row.x_L
        if not bool(changed_L.any()):
            return
        assert row.unmask_steps_L is not None
        is_mask_L = (next_x_L == self._info.mask_token_id).numpy()
        # A new array: the old one may still be referenced by a payload being encoded.
        unmask_steps_L = row.unmask_steps_L.copy()
        unmask_steps_L[changed_L.numpy()] = row.step
        unmask_steps_L[changed_L.numpy() & is_mask_L] = -1
        row.unmask_steps_L = unmask_steps_L
        row.x_L = next_x_L
        row.state_is_collected = False

    def _emit_trajectory(self, row: Row) -> None:
        assert row.unmask_steps_L is not None and row.request.sampler is not None
        done = TrajectoryDone(
            sequence_id=row.sequence_id,
            token_ids=row.x_L.to(torch.int32).numpy().astype("<i4").tobytes(),
            unmask_steps=row.unmask_steps_L.astype("<i4").tobytes(),
            num_forwards=row.num_forwards,
            num_steps=row.step,
            num_collected_steps=row.num_collected_steps,
            revision=self._revision,
            mask_token_suppressed=row.request.sampler.suppress_mask_token,
        )
        for reader in row.readers:
            reader.request.stream.put(done)

    def _row_batch(self, rows: Sequence[Row]) -> RowBatch:
        return RowBatch(
            x_BL=_pad([row.x_L for row in rows], value=0),
            frozen_BL=_pad([row.frozen_L for row in rows], value=True),
            step_B=torch.tensor([row.step for row in rows]),
            num_steps_B=torch.tensor([row.num_steps for row in rows]),
            seeds=[row.seed for row in rows],
            sequence_ids=[row.sequence_id for row in rows],
            denoiser_block_length=self._info.block_length,
        )


def _decides(row: Row) -> bool:
    return row.decided_L is not None and bool(row.decided_L.any())


def _groups(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """Rows that a sampler takes together: alike but for step and number of steps; scores apart."""
    groups: dict[SamplerConfig | None, list[Row]] = {}
    for row in rows:
        config = row.request.sampler
        key = None if config is None else dataclasses.replace(config, num_steps=1)
        groups.setdefault(key, []).append(row)
    return groups.values()


def _pad(rows: Sequence[Tensor], *, value: int | bool) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
