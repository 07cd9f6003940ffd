from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from teacher_server.engine.batcher import next_batch

CLIENTS = "abc"


@dataclass(eq=False)
class _Row:
    length: int
    client_id: str = "a"
    deadline_s: float = 1.0
    forwards_per_step: int = 1
    num_steps: int = 1

    @property
    def num_tokens(self) -> int:
        return self.length * self.forwards_per_step


_ROW = st.builds(
    _Row,
    length=st.integers(1, 60),
    client_id=st.sampled_from(CLIENTS),
    deadline_s=st.sampled_from([1.0, 2.0, 3.0]),
    forwards_per_step=st.sampled_from([1, 1, 2]),
    num_steps=st.integers(1, 4),
)
_ROWS = st.lists(_ROW, max_size=25)
_SERVED = st.fixed_dictionaries({client: st.integers(0, 200) for client in CLIENTS})
_BUDGETS = st.integers(1, 300)
_FRACTIONS = st.sampled_from([None, 0.0, 0.1, 0.5, 0.99])


def _reference(
    rows: list[_Row], served: dict[str, int], *, max_tokens: int, max_fraction: float | None
) -> list[_Row]:
    """The rule in plain words: order all rows, then try every length to pad to."""
    left, served, window = list(rows), dict(served), list[_Row]()
    while left and sum(row.num_tokens for row in window) < 4 * max_tokens:
        client = min({row.client_id for row in left}, key=lambda name: (served[name], name))
        own = [row for row in left if row.client_id == client]
        row = min(own, key=lambda row: row.deadline_s)
        left.remove(row)
        served[client] += row.num_tokens
        window.append(row)
    if max_fraction is None:
        batch = list[_Row]()
        for row in window:
            if not batch or sum(other.num_tokens for other in [*batch, row]) <= max_tokens:
                batch.append(row)
        return batch
    best, best_worth = window[:1], Fraction(0)
    for longest in sorted({row.length for row in window if row.length >= window[0].length}):
        batches = [window[:1]]
        others = [row for row in window[1:] if row.length <= longest]
        for row in sorted(others, key=lambda row: -row.length):
            if _padded([*batches[-1], row], longest) <= max_tokens:
                if Fraction(row.length, longest) < _worth(batches[-1], longest):
                    break
                batches.append([*batches[-1], row])
        if longest > window[0].length:
            del batches[0]
        for batch in reversed(batches):
            num_padding = _padded(batch, longest) - sum(row.num_tokens for row in batch)
            if num_padding <= max_fraction * _padded(batch, longest):
                if _worth(batch, longest) > best_worth:
                    best, best_worth = batch, _worth(batch, longest)
                break
    return sorted(best, key=window.index)


def _padded(batch: list[_Row], longest: int) -> int:
    return sum(row.forwards_per_step for row in batch) * longest


def _worth(batch: list[_Row], longest: int) -> Fraction:
    return Fraction(sum(row.num_tokens for row in batch), _padded(batch, longest) + 128)


@settings(deadline=None)
@given(rows=_ROWS, served=_SERVED, budget=_BUDGETS, fraction=_FRACTIONS)
def test_a_batch_is_that_of_the_plain_rule(
    rows: list[_Row], served: dict[str, int], budget: int, fraction: float | None
) -> None:
    batch = next_batch(
        rows, served_tokens=served, max_batch_tokens=budget, max_padding_fraction=fraction
    )
    assert batch == _reference(rows, served, max_tokens=budget, max_fraction=fraction)


class _Scheduling(RuleBasedStateMachine):
    """Rows come, step, and leave; each batch is the reference's, and nobody is forgotten."""

    max_fraction: float | None = None
    BUDGET = 100

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[_Row] = []
        self.served = dict.fromkeys(CLIENTS, 0)
        self.num_admitted = self.num_ended = 0

    @rule(rows=st.lists(_ROW, min_size=1, max_size=6))
    def admit(self, rows: list[_Row]) -> None:
        self.rows += rows
        self.num_admitted += len(rows)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.rows.remove(data.draw(st.sampled_from(self.rows)))
        self.num_ended += 1

    @precondition(lambda self: self.rows)
    @rule()
    def step(self) -> None:
        limits = {"max_tokens": self.BUDGET, "max_fraction": self.max_fraction}
        expected = _reference(self.rows, self.served, **limits)  # type: ignore[arg-type]
        batch = next_batch(
            self.rows,
            served_tokens=self.served,
            max_batch_tokens=self.BUDGET,
            max_padding_fraction=self.max_fraction,
        )
        assert batch == expected
        self._is_sound(batch)
        for row in batch:
            self.served[row.client_id] += row.num_tokens
            row.num_steps -= 1
        self.num_ended += sum(row.num_steps == 0 for row in batch)
        self.rows = [row for row in self.rows if row.num_steps > 0]

    def _is_sound(self, batch: list[_Row]) -> None:
        """Work is conserved, limits hold, and the least served client runs its oldest deadline."""
        assert batch and len({id(row) for row in batch}) == len(batch)
        waiting = {row.client_id for row in self.rows}
        assert self.served[batch[0].client_id] == min(self.served[client] for client in waiting)
        own = [row for row in self.rows if row.client_id == batch[0].client_id]
        assert batch[0].deadline_s == min(row.deadline_s for row in own)
        if len(batch) > 1:
            useful = sum(row.num_tokens for row in batch)
            if self.max_fraction is None:
                assert useful <= self.BUDGET
            else:
                padded = _padded(batch, max(row.length for row in batch))
                assert padded <= self.BUDGET
                assert padded - useful <= self.max_fraction * padded

    @invariant()
    def every_row_is_somewhere(self) -> None:
        assert self.num_admitted == self.num_ended + len(self.rows)


class _PaddedScheduling(_Scheduling):
    max_fraction = 0.2


@pytest.mark.parametrize("machine", [_Scheduling, _PaddedScheduling])
def test_a_schedule_of_any_arrivals_and_ends_is_that_of_the_plain_rule(
    machine: type[_Scheduling],
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=20, deadline=None)
    )


def _lengths(batch: list[_Row]) -> list[int]:
    return [row.length for row in batch]


@pytest.mark.parametrize("fraction", [None, 0.0])
def test_rows_of_one_deadline_stay_in_order_of_arrival(fraction: float | None) -> None:
    rows = [_Row(4) for _ in range(6)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=12, max_padding_fraction=fraction)
    assert batch == rows[:3]


@pytest.mark.parametrize("fraction", [None, 0.9])
def test_a_row_longer_than_the_budget_runs_alone(fraction: float | None) -> None:
    rows = [_Row(50), _Row(50), _Row(2)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=16, max_padding_fraction=fraction)
    assert batch == rows[:1]


@pytest.mark.parametrize("fraction", [None, 0.1])
def test_two_rows_are_served_soon_beside_a_hundred_of_another_client(
    fraction: float | None,
) -> None:
    left = [_Row(10, "many") for _ in range(100)] + [_Row(10, "few") for _ in range(2)]
    served, batches = Counter[str](), list[list[str]]()
    while left:
        batch = next_batch(
            left, served_tokens=served, max_batch_tokens=40, max_padding_fraction=fraction
        )
        left = [row for row in left if row not in batch]
        batches.append([row.client_id for row in batch])
        served.update({row.client_id: row.length for row in batch})
    assert batches[0] == ["few", "many", "few", "many"]
    assert sum(batch.count("many") for batch in batches) == 100
    assert len(batches) == 26


def test_a_client_that_was_served_more_waits_until_the_other_caught_up() -> None:
    left = [_Row(10, client) for client in "aaabbb"]
    batch = next_batch(
        left, served_tokens={"a": 20, "b": 0}, max_batch_tokens=40, max_padding_fraction=None
    )
    assert "".join(row.client_id for row in batch) == "bbab"


def test_packed_rows_of_any_length_fill_the_budget() -> None:
    rows = [_Row(length) for length in (100, 10, 512, 95, 300, 32)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=540, max_padding_fraction=None)
    # 512 does not fit behind the first two, what comes later does.
    assert _lengths(batch) == [100, 10, 95, 300, 32]


def test_a_padded_row_of_another_length_waits_for_the_next_step() -> None:
    rows = [_Row(100), _Row(10), _Row(95)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=1000, max_padding_fraction=0.1)
    assert _lengths(batch) == [100, 95]


def test_padded_rows_are_joined_by_those_nearest_in_length() -> None:
    rows = [_Row(length) for length in (100, 120, 101, 119, 102, 118)]
    batch = next_batch(rows, served_tokens={}, max_batch_tokens=310, max_padding_fraction=0.2)
    assert _lengths(batch) == [100, 101, 102]


@pytest.mark.parametrize(("fraction", "most"), [(None, 0.0), (0.1, 0.08)])
def test_a_ragged_mix_is_hardly_padded_and_its_clients_are_served_alike(
    fraction: float | None, most: float
) -> None:
    """8 clients with 16 rows each of 32 to 512 tokens, a new row for each that ended."""
    random = Random(0)
    rows = [_ragged(random, f"c{client}") for client in range(8) for _ in range(16)]
    served, num_useful, num_padded = Counter[str](), 0, 0
    for _ in range(300):
        batch = next_batch(
            rows, served_tokens=served, max_batch_tokens=4096, max_padding_fraction=fraction
        )
        served.update({row.client_id: 0 for row in batch})
        for row in batch:
            served[row.client_id] += row.length
            row.num_steps -= 1
            if not row.num_steps:
                rows.remove(row)
                rows.append(_ragged(random, row.client_id))
        num_useful += sum(_lengths(batch))
        num_padded += max(_lengths(batch)) * len(batch) if fraction else sum(_lengths(batch))
    assert 1 - num_useful / num_padded <= most
    assert num_useful / 300 > (4096 - 512 if fraction is None else 1800)
    # Nobody is behind by more than the look-ahead.
    assert max(served.values()) - min(served.values()) <= 4 * 4096


def _ragged(random: Random, client_id: str) -> _Row:
    return _Row(
        random.randint(32, 512), client_id, random.random(), num_steps=random.choice([1, 8, 32, 64])
    )
