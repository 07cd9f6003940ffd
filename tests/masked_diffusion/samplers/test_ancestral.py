"""The last step of ancestral sampling: noise removal by the likeliest token."""

import pytest
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import RowBatch, SamplerConfig, decide, get_sampler
from masked_diffusion.sampling import sample

MASK, NUM_IDS, LENGTH = 19, 20, 30


def test_only_rows_at_their_last_step_take_the_likeliest_token() -> None:
    """Whatever the temperature, and whoever else is in the batch."""
    steps, num_steps = [4, 3, 0, 0], [5, 5, 1, 2]
    rows = RowBatch(
        x_BL=torch.full((4, LENGTH), MASK),
        frozen_BL=torch.zeros(4, LENGTH, dtype=torch.bool),
        step_B=torch.tensor(steps),
        num_steps_B=torch.tensor(num_steps),
        seeds=[1] * 4,
        sequence_ids=[0, 1, 2, 3],
    )
    config = SamplerConfig(algorithm="ancestral", num_steps=5, temperature=4.0)
    # Every position, so that the rows that draw show it.
    decided_BL = torch.ones(4, LENGTH, dtype=torch.bool)
    logits_PV = torch.randn(4 * LENGTH, NUM_IDS, generator=torch.Generator().manual_seed(0))
    likeliest_BL = logits_PV.argmax(-1).view(4, LENGTH)
    decisions = decide(
        get_sampler("ancestral"),
        rows,
        config,
        decided_BL=decided_BL,
        logits_chunks=logits_PV.split(7),
    )
    is_likeliest_B = (decisions.tokens_BL == likeliest_BL).all(-1)
    assert is_likeliest_B.tolist() == [True, False, True, False]


@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_masks_left_for_the_last_step_become_the_likeliest_tokens(
    num_steps: int, tiny_denoiser: Denoiser
) -> None:
    mask = tiny_denoiser.info.mask_token_id
    x_BL = torch.full((8, LENGTH), mask)
    x_BL[:, :2] = torch.tensor([5, 60])
    result = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=x_BL != mask,
        lengths_B=torch.full((8,), LENGTH),
        # The schedule's end leaves half the masks, so that there is something to remove.
        config=SamplerConfig(algorithm="ancestral", num_steps=num_steps, temperature=3.0, eps=0.5),
        seeds=[2] * 8,
        sequence_ids=list(range(8)),
    )
    is_last_BL = result.unmask_steps_BL == num_steps - 1
    before_BL = result.x.masked_fill(is_last_BL, mask)
    with torch.no_grad():
        likeliest_BL = tiny_denoiser.logits(tiny_denoiser(before_BL)).argmax(-1)
    assert is_last_BL.sum() > 8
    assert torch.equal(result.x[is_last_BL], likeliest_BL[is_last_BL])
    earlier_BL = (result.unmask_steps_BL >= 0) & ~is_last_BL
    assert earlier_BL.any() == (num_steps > 1)
    # Of 300 ids at temperature 3, few draws are the likeliest.
    assert (result.x == likeliest_BL)[earlier_BL].sum() <= earlier_BL.sum() // 2
