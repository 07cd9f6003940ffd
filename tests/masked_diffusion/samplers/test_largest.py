import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masked_diffusion.samplers import largest
from masked_diffusion.samplers.largest import Largest, at_least_kth


def slow(logits: list[float], k: int) -> list[int]:
    """Ids of the logits that at most k - 1 others are larger than, in order."""
    return [v for v, logit in enumerate(logits) if sum(other > logit for other in logits) < k]


def _ids(found: Largest, row: int) -> list[int]:
    is_there_N = found.values_MN[row] > -torch.inf
    return found.ids_MN[row][is_there_N].tolist()


def _check(logits_MV: Tensor, k: int) -> None:
    found = at_least_kth(logits_MV, k)
    for row, logits_V in enumerate(logits_MV):
        ids = _ids(found, row)
        assert ids == slow(logits_V.tolist(), k)
        is_there_N = found.values_MN[row] > -torch.inf
        assert torch.equal(found.values_MN[row][is_there_N], logits_V[ids])
        assert torch.equal(is_there_N, is_there_N.sort(descending=True).values)
    assert int(found.ids_MN.max()) < logits_MV.shape[1]


@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=9, max_size=9), min_size=1, max_size=4),
    k=st.integers(1, 12),
)
def test_the_largest_are_kept_with_all_equals_of_the_last(rows: list[list[int]], k: int) -> None:
    _check(torch.tensor(rows, dtype=torch.float32), k)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_ids=st.integers(128, 300),
    num_values=st.sampled_from([2, 9, 10_000]),
    is_sorted=st.booleans(),
)
def test_tiles_hide_none_of_the_largest(
    seed: int, num_ids: int, num_values: int, is_sorted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_MV = torch.randint(num_values, (3, num_ids), generator=generator).float()
    if is_sorted:
        logits_MV = logits_MV.sort(dim=-1).values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(largest, "_MIN_IDS_A_KEPT", 1)
        for k in (1, 2, 8):
            _check(logits_MV, k)


def test_a_row_is_as_it_would_be_alone() -> None:
    logits_MV = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    logits_MV[2, 100:400] = 9.0  # more equals than are asked for
    together = at_least_kth(logits_MV, 20)
    for row in range(6):
        alone = at_least_kth(logits_MV[row : row + 1], 20)
        assert _ids(alone, 0) == _ids(together, row)
    assert len(_ids(together, 2)) == 300


def test_no_rows_and_rows_that_are_no_numbers_are_legal() -> None:
    assert at_least_kth(torch.empty(0, 50), 3).ids_MN.shape == (0, 1)
    logits_MV = torch.full((2, 50), torch.nan)
    logits_MV[1] = torch.arange(50.0)
    found = at_least_kth(logits_MV, 3)
    assert _ids(found, 0) == [] and _ids(found, 1) == [47, 48, 49]
