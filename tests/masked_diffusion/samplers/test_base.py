import pytest
import torch

from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.samplers import ALGORITHMS, SAMPLERS, RowBatch, get_sampler


def test_every_algorithm_has_a_sampler() -> None:
    assert set(SAMPLERS) == set(ALGORITHMS)


def test_an_unknown_algorithm_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown algorithm 'magic'; known: ancestral, entropy, entropy_bounded"
    ):
        get_sampler("magic")


def test_rows_draw_at_their_own_step() -> None:
    rows = RowBatch(
        x_BL=torch.zeros(2, 5, dtype=torch.int64),
        frozen_BL=torch.zeros(2, 5, dtype=torch.bool),
        step_B=torch.tensor([0, 3]),
        num_steps_B=torch.tensor([4, 8]),
        seeds=[1, 2],
        sequence_ids=[10, 20],
    )
    alone = keyed_uniforms(seed=2, sequence_id=20, step=3, length=5, stream="order")
    assert rows.uniforms("order")[1].tolist() == alone.tolist()


def test_a_mask_in_the_prompt_is_not_to_be_unmasked() -> None:
    rows = RowBatch(
        x_BL=torch.tensor([[9, 9, 1]]),
        frozen_BL=torch.tensor([[True, False, True]]),
        step_B=torch.tensor([0]),
        num_steps_B=torch.tensor([1]),
        seeds=[0],
        sequence_ids=[0],
    )
    assert rows.masked(mask_token_id=9).tolist() == [[False, True, False]]
