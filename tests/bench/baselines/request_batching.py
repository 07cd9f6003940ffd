"""The usual dynamic batching: whole requests form a batch and run to their end together."""

import torch
from torch import Tensor

from masked_diffusion.families.qwen2 import Qwen2
from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Request, Row


class PaddedQwen2(Qwen2):
    """Takes padded batches, as servers that batch requests do."""

    num_rows = 0
    """Rows that a batch has at least; missing ones are filled up."""

    def enable_ragged(self) -> bool:
        return False

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        times_B: Tensor | None = None,
        clean_ids_BL: Tensor | None = None,
    ) -> Tensor:
        batch_size, length = input_ids_BL.shape
        num_missing = self.num_rows - batch_size
        if num_missing > 0:
            input_ids_BL = torch.cat([input_ids_BL, input_ids_BL[:1].expand(num_missing, length)])
            if attention_mask_BL is not None:
                filler_BL = attention_mask_BL[:1].expand(num_missing, length)
                attention_mask_BL = torch.cat([attention_mask_BL, filler_BL])
        return super().hidden_states(input_ids_BL, attention_mask_BL)[:batch_size]


class LeanRequestBatchingEngine(Engine):
    """Takes waiting requests of one kind, in order of arrival, until padded rows fill the budget.

    Those that come later wait until all of them are done. All else is the engine's own: head,
    sampling, encoding, streams. Lean: rows that have ended leave the tensor, which the usual loop
    over steps does not do.
    """

    _together: frozenset[Request] = frozenset()
    _num_rows = 0

    def _next_batch(self) -> list[Row]:
        live = [row for row in self._leading() if row.request in self._together]
        if not live:
            self._together = self._take_requests()
            live = [row for row in self._leading() if row.request in self._together]
            self._num_rows = len(live)
        return [row for row in live if row.is_ready and row.request.stream.has_room]

    def _take_requests(self) -> frozenset[Request]:
        taken: dict[Request, None] = {}
        longest = num_rows = 0
        waiting = list(dict.fromkeys(row.request for row in self._leading()))
        for request in waiting:
            # Scores and trajectories are calls of two methods.
            if request.kind != waiting[0].kind:
                continue
            longest = max([longest, *(row.length for row in request.rows)])
            num_rows += len(request.rows)
            if taken and longest * num_rows > self._config.max_batch_tokens:
                break
            taken[request] = None
        return frozenset(taken)


class RequestBatchingEngine(LeanRequestBatchingEngine):
    """As a sampling loop runs a batch: a row that has ended stays in the tensor until all have."""

    def _run_step(self, batch: list[Row]) -> None:
        denoiser = self._runner.denoiser
        assert isinstance(denoiser, PaddedQwen2)
        denoiser.num_rows = self._num_rows
        num_missing = self._num_rows - sum(row.forwards_per_step for row in batch)
        self.counters.num_padded_tokens += num_missing * max(row.length for row in batch)
        super()._run_step(batch)
        denoiser.num_rows = 0
