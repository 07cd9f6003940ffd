"""The head over a step's positions, once each: what is emitted and what the sampler decides."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protos import codec
from teacher_server.engine import encoder
from teacher_server.engine.encoder import HeadDistribution
from teacher_server.engine.model_runner import ModelRunner
from teacher_server.engine.sequence import TargetSpec


@dataclass(kw_only=True, slots=True, eq=False)
class HeadRow:
    """One row of a step, and where it needs the head."""

    hidden_LD: Tensor
    captured_L: Tensor | None = None
    """[L] bool on the CPU: positions whose distribution is emitted; None = none by the head."""
    spec: TargetSpec
    """How they are written."""
    decided_L: Tensor | None = None
    """[L] bool on the CPU: positions that the sampler asks about; None = none."""
    pieces: list[HeadDistribution] = field(default_factory=list)

    @property
    def needed(self) -> Tensor:
        """[L] bool on the CPU: captured or decided."""
        needed_L = torch.zeros(len(self.hidden_LD), dtype=torch.bool)
        for part_L in (self.captured_L, self.decided_L):
            if part_L is not None:
                needed_L |= part_L
        return needed_L

    @property
    def distribution(self) -> codec.Distribution:
        """Of the captured positions, once the pass is through."""
        return encoder.concatenate(self.pieces)


class HeadPass:
    """Applies the head to a chunk of positions at a time.

    A position that is both emitted and decided is multiplied once. There is a row at least.
    """

    def __init__(self, runner: ModelRunner, rows: Sequence[HeadRow]) -> None:
        self._runner = runner
        self._rows = rows
        self.head_s = self.encode_s = 0.0
        needed = [row.needed for row in rows]
        self._hidden_PD = torch.cat(
            [
                row.hidden_LD[needed_L.to(row.hidden_LD.device)]
                for row, needed_L in zip(rows, needed, strict=True)
            ]
        )
        self._row_P = torch.repeat_interleave(torch.tensor([int(part.sum()) for part in needed]))
        self._captured_P = _gather([row.captured_L for row in rows], needed)
        self._decided_P = _gather([row.decided_L for row in rows], needed)
        self._specs = list(dict.fromkeys(row.spec for row in rows))
        spec_of_row = torch.tensor([self._specs.index(row.spec) for row in rows])
        self._spec_P = spec_of_row[self._row_P]

    @property
    def num_positions(self) -> int:
        """Positions that the head is applied to."""
        return len(self._hidden_PD)

    @torch.inference_mode()
    def decided_logits(self, *, suppress_mask_token: bool = True) -> Iterator[Tensor]:
        """Goes through all positions, encoding what is emitted; yields what is decided.

        Yields:
            [chunk, V] float32 of the decided positions, in row-major order. Whoever takes them may
            write into them.
        """
        if not self.num_positions:
            return
        start, began_s = 0, time.monotonic()
        for logits_PV in self._runner.logits_chunks(
            self._hidden_PD, suppress_mask_token=suppress_mask_token
        ):
            multiplied_s = time.monotonic()
            chunk = slice(start, start + len(logits_PV))
            self._encode(logits_PV, chunk, is_suppressed=suppress_mask_token)
            self.head_s += multiplied_s - began_s
            self.encode_s += time.monotonic() - multiplied_s
            yield _select(logits_PV, self._decided_P[chunk])
            start, began_s = chunk.stop, time.monotonic()

    def _encode(self, logits_PV: Tensor, chunk: slice, *, is_suppressed: bool) -> None:
        captured_P, spec_P, row_P = (
            self._captured_P[chunk],
            self._spec_P[chunk],
            self._row_P[chunk],
        )
        for index in spec_P[captured_P].unique().tolist():
            is_own_P = captured_P & (spec_P == index)
            own_MV = _select(logits_PV, is_own_P)
            if not is_suppressed:
                own_MV = self._runner.without_mask_token(own_MV)
            distribution = encoder.encode_by_head(own_MV, self._specs[index])
            owners, counts = row_P[is_own_P].unique_consecutive(return_counts=True)
            first = 0
            for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
                self._rows[owner].pieces.append(encoder.rows(distribution, first, first + count))
                first += count


def _gather(parts: Sequence[Tensor | None], needed: Sequence[Tensor]) -> Tensor:
    """[P] bool: `parts` where needed; None is nowhere."""
    return torch.cat(
        [
            torch.zeros(int(needed_L.sum()), dtype=torch.bool)
            if part_L is None
            else part_L[needed_L]
            for part_L, needed_L in zip(parts, needed, strict=True)
        ]
    )


def _select(logits_PV: Tensor, chosen_P: Tensor) -> Tensor:
    """The chosen rows; no copy where all are."""
    return logits_PV if bool(chosen_P.all()) else logits_PV[chosen_P.to(logits_PV.device)]
