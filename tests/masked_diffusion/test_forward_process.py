import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masked_diffusion.forward_process import mask_tokens, maskable_positions, sample_times
from masked_diffusion.randomness import keyed_uniforms_batch

MASK = 99


def _uniforms(num_rows: int, length: int, *, seed: int = 0) -> Tensor:
    return keyed_uniforms_batch(
        seeds=[seed] * num_rows,
        sequence_ids=range(num_rows),
        steps=[0] * num_rows,
        length=length,
        stream="mask",
    )


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_stratified_times_put_one_row_into_each_stratum(total: int, seed: int) -> None:
    t_B = sample_times(range(total), seed=seed, epoch_step=3, t_min=1e-9, t_max=1.0)
    from_center = np.sort(t_B.double().numpy()) * total - (np.arange(total) + 0.5)
    # Half a stratum, and the rounding of t to float32.
    assert np.abs(from_center).max() <= 0.5 + total * 2**-24


def test_ranks_together_draw_what_one_process_would() -> None:
    ids = [11, 5, 8, 2, 9, 14]
    whole = sample_times(ids, seed=1, epoch_step=4)
    ranks = [
        sample_times(ids[first : first + 2], seed=1, epoch_step=4, offset=first, total=6)
        for first in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.cat(ranks), whole, rtol=0, atol=0)


@pytest.mark.parametrize("stratified", [True, False])
def test_a_single_place_sees_uniform_times_over_steps(stratified: bool) -> None:
    draws = [
        float(sample_times(range(4), seed=2, epoch_step=step, stratified=stratified)[1])
        for step in range(3000)
    ]
    values = np.sort(np.array(draws))
    # Kolmogorov-Smirnov at one in a thousand, plus the mass of 1/500 that each clamp moves.
    distance = np.abs(values - (np.arange(3000) + 0.5) / 3000).max()
    assert distance < 1.95 / np.sqrt(3000) + 1 / 500


def test_stratification_lowers_the_variance_of_the_mean_time() -> None:
    def spread(*, stratified: bool) -> float:
        return float(
            np.std(
                [
                    sample_times(range(16), seed=0, epoch_step=step, stratified=stratified).mean()
                    for step in range(200)
                ]
            )
        )

    # In theory 1 / (sqrt(12) * 16**1.5) against 1 / (sqrt(12) * 4): 16 times less.
    assert spread(stratified=True) < spread(stratified=False) / 8


def test_unstratified_times_belong_to_the_sequence() -> None:
    one = sample_times([5, 6], seed=0, epoch_step=1, stratified=False)
    two = sample_times([9, 6, 5], seed=0, epoch_step=1, stratified=False)
    assert one.tolist() == [two[2].item(), two[1].item()]


def test_times_are_clamped() -> None:
    t_B = sample_times(range(64), seed=0, epoch_step=0, t_min=0.25, t_max=0.5)
    assert (t_B.min().item(), t_B.max().item()) == (0.25, 0.5)
    assert t_B.dtype == torch.float32


def test_bad_time_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 < t_min <= t_max <= 1, got t_min=0\.0"):
        sample_times([0], seed=0, epoch_step=0, t_min=0.0)
    with pytest.raises(ValueError, match="rows 3 to 5 do not fit into a global batch of 4"):
        sample_times([0, 1], seed=0, epoch_step=0, offset=3, total=4)


@given(
    data=st.data(),
    num_invalid=st.integers(0, 2),
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
)
def test_only_maskable_positions_are_masked(
    data: st.DataObject, num_invalid: int, rows: int, length: int
) -> None:
    ids = data.draw(st.lists(st.integers(0, 5), min_size=rows * length, max_size=rows * length))
    lengths = data.draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
    prompts = data.draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
    x0_BL = torch.tensor(ids).view(rows, length)
    lengths_B = torch.tensor(lengths)
    maskable_BL = maskable_positions(
        x0_BL,
        lengths_B=lengths_B,
        prompt_lengths_B=torch.tensor(prompts),
        special_token_ids={0, 3},
        num_invalid_leading_positions=num_invalid,
    )
    for b in range(rows):
        for p in range(length):
            given_away = p < num_invalid or p < prompts[b] or p >= lengths[b]
            assert maskable_BL[b, p] == (not given_away and ids[b * length + p] not in {0, 3})

    before = x0_BL.clone()
    batch = mask_tokens(
        x0_BL,
        maskable_BL=maskable_BL,
        t_B=torch.ones(rows),
        uniforms_BL=_uniforms(rows, length),
        mask_token_id=MASK,
        lengths_B=lengths_B,
    )
    assert torch.equal(batch.loss_BL, maskable_BL), "t = 1 masks all that may be masked"
    assert torch.equal(batch.xt_BL == MASK, maskable_BL)
    assert torch.equal(batch.xt_BL[~maskable_BL], x0_BL[~maskable_BL])
    assert torch.equal(x0_BL, before)


def test_no_prompt_and_no_special_ids_leave_the_real_positions() -> None:
    maskable_BL = maskable_positions(
        torch.zeros(2, 3, dtype=torch.int64), lengths_B=torch.tensor([3, 1]), special_token_ids=()
    )
    assert maskable_BL.tolist() == [[True, True, True], [True, False, False]]


def test_the_masked_share_is_the_time() -> None:
    num_rows, length = 3, 20_000
    t_B = torch.tensor([0.1, 0.5, 0.9])
    batch = mask_tokens(
        torch.zeros(num_rows, length, dtype=torch.int64),
        maskable_BL=torch.ones(num_rows, length, dtype=torch.bool),
        t_B=t_B,
        uniforms_BL=_uniforms(num_rows, length),
        mask_token_id=MASK,
        lengths_B=torch.full((num_rows,), length),
    )
    share_B = batch.loss_BL.double().mean(1)
    # Four standard deviations of a binomial share.
    bound_B = 4 * (t_B * (1 - t_B) / length).sqrt()
    assert bool(((share_B - t_B).abs() < bound_B).all())
    assert torch.equal(batch.t_B, t_B)
