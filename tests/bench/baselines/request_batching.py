"""The usual dynamic batching: whole requests form a batch and run to their end together."""

from masked_diffusion.families.qwen2 import Qwen2
from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Request, Row


class PaddedQwen2(Qwen2):
    """Takes padded batches, as servers that batch requests do."""

    def enable_ragged(self) -> bool:
        return False


class RequestBatchingEngine(Engine):
    """Takes waiting requests, in order of arrival, until their padded rows fill the token budget.

    Those that come later wait until all of them are done; rows that end early leave their place
    empty, as they do where a batch is a call. All else is the engine's own: head, sampling,
    encoding, streams.
    """

    _together: frozenset[Request] = frozenset()

    def _next_batch(self) -> list[Row]:
        live = [row for row in self._leading() if row.request in self._together]
        if not live:
            self._together = self._take_requests()
            live = [row for row in self._leading() if row.request in self._together]
        return [row for row in live if row.is_ready and row.request.stream.has_room]

    def _take_requests(self) -> frozenset[Request]:
        taken: dict[Request, None] = {}
        longest = num_rows = 0
        for request in dict.fromkeys(row.request for row in self._leading()):
            longest = max([longest, *(row.length for row in request.rows)])
            num_rows += len(request.rows)
            if taken and longest * num_rows > self._config.max_batch_tokens:
                break
            taken[request] = None
        return frozenset(taken)
