import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion.samplers.counts import ranked_first, remask_count, unmask_count


def _schedule(num_masked: int, num_steps: int) -> list[int]:
    """Counts what each step of a row unmasks."""
    left, counts = num_masked, []
    for step in range(num_steps):
        count = int(
            unmask_count(
                torch.tensor([left]),
                step_B=torch.tensor([step]),
                num_steps_B=torch.tensor([num_steps]),
                eps=1e-3,
            )
        )
        counts.append(count)
        left -= count
    return counts


@pytest.mark.parametrize(
    ("num_masked", "num_steps", "expected"),
    [
        (128, 128, [0] + [1] * 126 + [2]),
        (128, 64, [1] + [2] * 62 + [3]),
        (128, 32, [3] + [4] * 30 + [5]),
        (9, 6, [1, 1, 1, 1, 2, 3]),
    ],
)
def test_measured_schedules_of_upstream(
    num_masked: int, num_steps: int, expected: list[int]
) -> None:
    assert _schedule(num_masked, num_steps) == expected


def test_measured_idle_steps_of_upstream() -> None:
    counts = _schedule(128, 200)
    assert counts.count(0) == 73
    assert counts == sorted(counts), "all idle steps come first"
    assert _schedule(64, 128).count(0) == 65


@given(num_masked=st.integers(0, 300), num_steps=st.integers(1, 100))
def test_a_schedule_unmasks_everything_exactly_once(num_masked: int, num_steps: int) -> None:
    counts = _schedule(num_masked, num_steps)
    assert sum(counts) == num_masked
    assert min(counts) >= 0


def test_rows_of_a_batch_have_their_own_counts() -> None:
    counts_B = unmask_count(
        torch.tensor([128, 9, 5]),
        step_B=torch.tensor([0, 4, 0]),
        num_steps_B=torch.tensor([32, 6, 1]),
        eps=1e-3,
    )
    assert counts_B.tolist() == [3, int(9 * 0.499), 5]


def test_remask_count_is_exact_where_float32_is_not() -> None:
    count = remask_count(
        torch.tensor([120]), step_B=torch.tensor([94]), num_steps_B=torch.tensor([200])
    )
    assert count.tolist() == [63]


@given(n=st.integers(0, 500), num_steps=st.integers(1, 200), data=st.data())
def test_remask_count_is_the_floor_of_the_exact_fraction(
    n: int, num_steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, num_steps - 1))
    count = int(
        remask_count(
            torch.tensor([n]), step_B=torch.tensor([step]), num_steps_B=torch.tensor([num_steps])
        )
    )
    assert count == n * (num_steps - step - 1) // num_steps
    assert count <= n
    assert count == 0 or step < num_steps - 1


@given(
    keys=st.lists(st.sampled_from([0.0, 0.5, 1.0, float("inf")]), min_size=1, max_size=9),
    data=st.data(),
    descending=st.booleans(),
)
def test_equal_keys_are_ranked_by_position(
    keys: list[float], data: st.DataObject, descending: bool
) -> None:
    count = data.draw(st.integers(0, len(keys)))
    chosen = ranked_first(torch.tensor([keys]), torch.tensor([count]), descending=descending)
    order = sorted(range(len(keys)), key=lambda p: (-keys[p] if descending else keys[p], p))
    assert chosen[0].nonzero().flatten().tolist() == sorted(order[:count])
