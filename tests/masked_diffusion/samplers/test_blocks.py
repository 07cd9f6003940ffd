import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion.samplers import RowBatch, SamplerConfig
from masked_diffusion.samplers.blocks import block_step
from tests.masked_diffusion.samplers.block_reference import slow_block_step

MASK = 50


def _rows(
    frozen: list[list[bool]],
    steps: list[int],
    num_steps: list[int],
    *,
    x: list[list[int]] | None = None,
    denoiser_block_length: int | None = None,
) -> RowBatch:
    frozen_BL = torch.tensor(frozen)
    x_BL = torch.full(frozen_BL.shape, MASK) if x is None else torch.tensor(x)
    return RowBatch(
        x_BL=x_BL,
        frozen_BL=frozen_BL,
        step_B=torch.tensor(steps),
        num_steps_B=torch.tensor(num_steps),
        seeds=[0] * len(frozen),
        sequence_ids=list(range(len(frozen))),
        denoiser_block_length=denoiser_block_length,
    )


def _config(block_length: int) -> SamplerConfig:
    return SamplerConfig(algorithm="random", num_steps=1, block_length=block_length)


def _counts(num_open: int, num_steps: int, block_length: int) -> list[int]:
    """What each step of a row that begins all masked is due."""
    left = [True] * num_open
    counts = []
    for step in range(num_steps):
        x = [[MASK if is_left else 1 for is_left in left]]
        rows = _rows([[False] * num_open], [step], [num_steps], x=x)
        due = block_step(rows, _config(block_length), mask_token_id=MASK)
        count = int(due.counts_B)
        for p in due.candidates_BL[0].nonzero().flatten().tolist()[:count]:
            left[p] = False
        counts.append(count)
    assert not any(left)
    return counts


@pytest.mark.parametrize(
    ("num_open", "num_steps", "block_length", "expected"),
    [
        # As LLaDA's get_num_transfer_tokens deals them.
        (10, 4, 0, [3, 3, 2, 2]),
        (8, 4, 4, [2, 2, 2, 2]),
        (6, 4, 3, [2, 1, 2, 1]),
        # What LLaDA does not allow: steps that do not come out even, and a shorter last block.
        (8, 5, 4, [2, 1, 1, 2, 2]),
        (7, 4, 4, [2, 2, 2, 1]),
        # More steps than positions: the later steps of a block are idle.
        (3, 5, 0, [1, 1, 1, 0, 0]),
        (4, 8, 2, [1, 1, 0, 0, 1, 1, 0, 0]),
        # More blocks than steps: neighbouring blocks are one.
        (6, 2, 1, [3, 3]),
        (7, 3, 2, [4, 2, 1]),
    ],
)
def test_what_each_step_is_due(
    num_open: int, num_steps: int, block_length: int, expected: list[int]
) -> None:
    assert _counts(num_open, num_steps, block_length) == expected


@given(num_open=st.integers(1, 40), num_steps=st.integers(1, 30), block_length=st.integers(0, 12))
def test_everything_is_unmasked_once_and_evenly(
    num_open: int, num_steps: int, block_length: int
) -> None:
    counts = _counts(num_open, num_steps, block_length)
    assert sum(counts) == num_open
    if block_length == 0:
        assert max(counts) - min(counts) <= 1
        assert counts == sorted(counts, reverse=True)


@given(data=st.data(), block_length=st.integers(0, 5), grid=st.sampled_from([None, 1, 3, 4]))
def test_rows_of_a_batch_have_their_own_blocks_steps_and_counts(
    data: st.DataObject, block_length: int, grid: int | None
) -> None:
    num_rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    bools = st.lists(st.booleans(), min_size=length, max_size=length)
    frozen = [data.draw(bools) for _ in range(num_rows)]
    is_masked = [data.draw(bools) for _ in range(num_rows)]
    num_steps = [data.draw(st.integers(1, 9)) for _ in range(num_rows)]
    steps = [data.draw(st.integers(0, count - 1)) for count in num_steps]
    x = [[MASK if masked else 1 for masked in row] for row in is_masked]
    rows = _rows(frozen, steps, num_steps, x=x, denoiser_block_length=grid)
    due = block_step(rows, _config(block_length), mask_token_id=MASK)
    for b in range(num_rows):
        masked = [p for p in range(length) if is_masked[b][p] and not frozen[b][p]]
        slow = slow_block_step(
            masked,
            frozen[b],
            step=steps[b],
            num_steps=num_steps[b],
            block_length=block_length,
            denoiser_block_length=grid,
        )
        assert due.candidates_BL[b].nonzero().flatten().tolist() == slow.candidates
        assert due.counts_B[b] == slow.count
        if slow.candidates:
            assert due.is_last_B[b] == slow.is_last


def test_blocks_begin_at_the_first_open_position_or_where_the_denoisers_own_do() -> None:
    # A prompt of three, then six open positions; two blocks of three and two steps each.
    frozen = [[True] * 3 + [False] * 6]
    step = block_step(_rows(frozen, [0], [4]), _config(3), mask_token_id=MASK)
    assert step.candidates_BL[0].nonzero().flatten().tolist() == [3, 4, 5]
    # Blocks of four from position 0: one open position lies in the prompt's own block.
    rows = _rows(frozen, [0], [6], denoiser_block_length=4)
    step = block_step(rows, _config(0), mask_token_id=MASK)
    assert step.candidates_BL[0].nonzero().flatten().tolist() == [3]


def test_a_mask_that_was_drawn_stays_a_candidate_of_later_blocks() -> None:
    x = [[MASK, 1, MASK, MASK]]
    step = block_step(_rows([[False] * 4], [2], [4], x=x), _config(2), mask_token_id=MASK)
    assert step.candidates_BL.tolist() == [[True, False, True, True]]
    assert step.counts_B.tolist() == [1]


def test_padding_changes_no_block() -> None:
    alone = _rows([[True, False, False, False]], [1], [3])
    padded = _rows([[True, False, False, False] + [True] * 5], [1], [3])
    for block_length in (0, 2):
        left, right = (
            block_step(rows, _config(block_length), mask_token_id=MASK) for rows in (alone, padded)
        )
        assert left.candidates_BL[0].tolist() == right.candidates_BL[0, :4].tolist()
        assert left.counts_B.tolist() == right.counts_B.tolist()
