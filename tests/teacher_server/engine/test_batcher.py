from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engine.batcher import next_batch


@dataclass
class _Request:
    client_id: str
    deadline_s: float


@dataclass(eq=False)
class _Row:
    request: _Request
    length: int
    forwards_per_step: int = 1


def _row(
    length: int, *, client: str = "a", deadline_s: float = 1.0, forwards_per_step: int = 1
) -> _Row:
    return _Row(_Request(client, deadline_s), length, forwards_per_step)


_ROWS = st.lists(
    st.builds(
        _row,
        st.integers(1, 60),
        client=st.sampled_from("abc"),
        deadline_s=st.sampled_from([1.0, 2.0, 3.0]),
        forwards_per_step=st.sampled_from([1, 1, 2]),
    ),
    max_size=25,
)
_SERVED = st.fixed_dictionaries({client: st.integers(0, 200) for client in "abc"})
_BUDGETS = st.integers(1, 300)
_FRACTIONS = st.sampled_from([0.0, 0.1, 0.5, 0.99])


def _reference(
    rows: list[_Row], served: dict[str, int], *, max_tokens: int, max_fraction: float
) -> list[_Row]:
    """One row after another, looking at all of them each time."""
    left, served, batch = list(rows), dict(served), list[_Row]()
    while left:
        clients = {row.request.client_id for row in left}
        client = min(clients, key=lambda name: (served[name], name))
        own = [row for row in left if row.request.client_id == client]
        row = min(own, key=lambda row: row.request.deadline_s)
        left.remove(row)
        served[client] += row.length * row.forwards_per_step
        together = [*batch, row]
        lengths = [row.length for row in together for _ in range(row.forwards_per_step)]
        padded = len(lengths) * max(lengths)
        padding = padded - sum(lengths)
        if not batch or (padded <= max_tokens and padding <= max_fraction * padded):
            batch = together
    return batch


@given(rows=_ROWS, served=_SERVED, budget=_BUDGETS, fraction=_FRACTIONS)
def test_a_batch_is_that_of_the_plain_rule(
    rows: list[_Row], served: dict[str, int], budget: int, fraction: float
) -> None:
    batch = next_batch(
        rows, served_tokens=served, max_batch_tokens=budget, max_padding_fraction=fraction
    )
    assert batch == _reference(rows, served, max_tokens=budget, max_fraction=fraction)


@given(rows=_ROWS, served=_SERVED, budget=_BUDGETS, fraction=_FRACTIONS)
def test_a_batch_keeps_its_budget_and_is_never_empty_while_there_are_rows(
    rows: list[_Row], served: dict[str, int], budget: int, fraction: float
) -> None:
    batch = next_batch(
        rows, served_tokens=served, max_batch_tokens=budget, max_padding_fraction=fraction
    )
    assert bool(batch) == bool(rows)
    assert len({id(row) for row in batch}) == len(batch)
    if len(batch) > 1:
        padded = sum(row.forwards_per_step for row in batch) * max(row.length for row in batch)
        useful = sum(row.length * row.forwards_per_step for row in batch)
        assert padded <= budget
        assert padded - useful <= fraction * padded


@given(rows=_ROWS, served=_SERVED)
def test_the_least_served_client_gives_its_oldest_deadline_first(
    rows: list[_Row], served: dict[str, int]
) -> None:
    batch = next_batch(rows, served_tokens=served, max_batch_tokens=100, max_padding_fraction=0.1)
    if batch:
        clients = {row.request.client_id for row in rows}
        assert served[batch[0].request.client_id] == min(served[client] for client in clients)
        own = [row for row in rows if row.request.client_id == batch[0].request.client_id]
        assert batch[0].request.deadline_s == min(row.request.deadline_s for row in own)


def test_rows_of_one_deadline_stay_in_order_of_arrival() -> None:
    rows = [_row(4) for _ in range(6)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=12, max_padding_fraction=0.0)
    assert batch == rows[:3]


def test_a_row_longer_than_the_budget_runs_alone() -> None:
    rows = [_row(50), _row(50), _row(2)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=16, max_padding_fraction=0.9)
    assert batch == rows[:1]


def test_two_rows_are_served_soon_beside_a_hundred_of_another_client() -> None:
    left = [_row(10, client="many") for _ in range(100)]
    left += [_row(10, client="few") for _ in range(2)]
    served, batches = Counter[str](), list[list[str]]()
    while left:
        batch = next_batch(
            left, served_tokens=served, max_batch_tokens=40, max_padding_fraction=0.1
        )
        left = [row for row in left if row not in batch]
        batches.append([row.request.client_id for row in batch])
        served.update({row.request.client_id: row.length for row in batch})
    assert batches[0] == ["few", "many", "few", "many"]
    assert sum(batch.count("many") for batch in batches) == 100
    assert len(batches) == 26


def test_a_client_that_was_served_more_waits_until_the_other_caught_up() -> None:
    left = [_row(10, client=client) for client in "aaabbb"]
    batch = next_batch(
        left, served_tokens={"a": 20, "b": 0}, max_batch_tokens=40, max_padding_fraction=0.0
    )
    assert "".join(row.request.client_id for row in batch) == "bbab"


def test_a_row_of_another_length_waits_for_the_next_step() -> None:
    long, short, other = _row(100), _row(10), _row(95)
    batch = next_batch(
        [long, short, other], served_tokens={}, max_batch_tokens=1000, max_padding_fraction=0.1
    )
    assert batch == [long, other]
