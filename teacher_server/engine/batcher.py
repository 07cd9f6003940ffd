"""Forms the next denoising step from the rows of all requests. Pure: no clock, no thread."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar


class BatchableRequest(Protocol):
    """What the batcher looks at in a request."""

    client_id: str
    deadline_s: float


class BatchableRow(Protocol):
    """What the batcher looks at in a row."""

    @property
    def request(self) -> BatchableRequest: ...

    @property
    def length(self) -> int: ...

    @property
    def forwards_per_step(self) -> int: ...


RowT = TypeVar("RowT", bound=BatchableRow)


def next_batch(
    rows: Iterable[RowT],
    *,
    served_tokens: Mapping[str, float],
    max_batch_tokens: int,
    max_padding_fraction: float,
) -> list[RowT]:
    """Rows of the next step: fair across clients, oldest deadline first, of similar length.

    The client that was served least gives the first row, whose length sets the batch; further rows
    are taken in the same fair order while the padded size (rows times the longest, a row with
    guidance counted twice) stays within `max_batch_tokens` and padding within
    `max_padding_fraction`. A row longer than the budget runs alone. Never empty while there are
    rows: the device does not wait.

    Args:
        rows: rows that can run now, in order of arrival.
        served_tokens: tokens served so far to each client that has rows.

    Source: least-attained-service order, the fluid limit of deficit round robin (Shreedhar and
        Varghese, 1996); the padded token budget is that of text-embeddings-inference.
    """
    batch: list[RowT] = []
    longest = num_tokens = num_forwards = 0
    for row in _fair_order(rows, served_tokens):
        new_longest = max(longest, row.length)
        padded = new_longest * (num_forwards + row.forwards_per_step)
        useful = num_tokens + row.length * row.forwards_per_step
        if batch and (padded > max_batch_tokens or padded - useful > max_padding_fraction * padded):
            continue
        batch.append(row)
        longest, num_tokens = new_longest, useful
        num_forwards += row.forwards_per_step
        if longest * (num_forwards + 1) > max_batch_tokens:
            break
    return batch


def _fair_order(rows: Iterable[RowT], served_tokens: Mapping[str, float]) -> Iterable[RowT]:
    by_client: dict[str, list[RowT]] = {}
    for row in rows:
        by_client.setdefault(row.request.client_id, []).append(row)
    for client_rows in by_client.values():
        # Stable: rows of one deadline stay in order of arrival. Reversed to pop from the end.
        client_rows.sort(key=lambda row: row.request.deadline_s)
        client_rows.reverse()
    heap = [(served_tokens.get(client, 0.0), client) for client in by_client]
    heapq.heapify(heap)
    while heap:
        served, client = heapq.heappop(heap)
        row = by_client[client].pop()
        yield row
        if by_client[client]:
            heapq.heappush(heap, (served + row.length * row.forwards_per_step, client))
