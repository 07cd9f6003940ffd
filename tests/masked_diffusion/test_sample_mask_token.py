"""Where the mask id may be drawn: how often it is, and what the trajectory says about it."""

import math

import pytest
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig, algorithms_for
from masked_diffusion.sampling import SampleResult, sample
from tests.biased_denoiser import favouring_the_mask
from tests.sampler_choices import choices

ALGORITHMS = algorithms_for("absorbing")
DRAWS_MASKS = [algorithm for algorithm in ALGORITHMS if algorithm != "ancestral"]
LENGTH, NUM_GIVEN = 14, 3


def _start(denoiser: Denoiser, num_rows: int) -> Tensor:
    """[B, L], all rows alike: three tokens, then masks."""
    x_L = torch.full((LENGTH,), denoiser.info.mask_token_id)
    x_L[:NUM_GIVEN] = torch.tensor([5, 60, 110])
    return x_L.expand(num_rows, -1).clone()


def _sample(denoiser: Denoiser, algorithm: str, *, num_rows: int, **how: object) -> SampleResult:
    x_BL = _start(denoiser, num_rows)
    return sample(
        denoiser,
        x_BL,
        frozen_BL=x_BL != denoiser.info.mask_token_id,
        lengths_B=torch.full((num_rows,), LENGTH),
        config=SamplerConfig(algorithm=algorithm, **(choices(algorithm) | how)),  # type: ignore[arg-type]
        seeds=[4] * num_rows,
        sequence_ids=list(range(num_rows)),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("algorithm", DRAWS_MASKS)
def test_a_denoiser_that_says_mask_alone_leaves_the_masks(
    algorithm: str, temperature: float, tiny_denoiser: Denoiser
) -> None:
    denoiser = favouring_the_mask(tiny_denoiser, 100.0)
    how = {"num_rows": 2, "num_steps": 6, "temperature": temperature}
    result = _sample(denoiser, algorithm, **how, suppress_mask_token=False)  # type: ignore[arg-type]
    assert torch.equal(result.x, _start(denoiser, 2))
    assert bool((result.unmask_steps_BL == -1).all())
    assert bool((result.num_forwards_B >= 1).all())
    suppressed = _sample(denoiser, algorithm, **how)  # type: ignore[arg-type]
    assert not bool((suppressed.x == denoiser.info.mask_token_id).any())


def test_the_mask_id_is_drawn_as_often_as_the_denoiser_says(tiny_denoiser: Denoiser) -> None:
    denoiser, num_rows = favouring_the_mask(tiny_denoiser, 5.0), 300
    mask = denoiser.info.mask_token_id
    result = _sample(
        denoiser,
        "origin",
        num_rows=num_rows,
        num_steps=1,
        temperature=1.0,
        suppress_mask_token=False,
    )
    with torch.no_grad():
        hidden_LD = denoiser(_start(denoiser, 1))[0, NUM_GIVEN:]
    weight_VD = denoiser.head_weight[: denoiser.info.vocab_size].double()
    logits_LV = hidden_LD.double() @ weight_VD.T
    logits_LV[:, mask] += 5.0
    p_L = logits_LV.softmax(-1)[:, mask]
    assert 0.05 < p_L.mean() < 0.95
    # Draws are independent: four standard deviations of a sum of Bernoulli draws.
    expected, deviation = num_rows * p_L.sum(), math.sqrt(num_rows * (p_L * (1 - p_L)).sum())
    assert abs((result.x == mask).sum() - expected) < 4 * deviation


@pytest.mark.parametrize("algorithm", DRAWS_MASKS)
def test_a_position_has_an_unmask_step_where_it_ended_unmasked(
    algorithm: str, tiny_denoiser: Denoiser
) -> None:
    """Also one that p2 masked again and then drew the mask for."""
    denoiser = favouring_the_mask(tiny_denoiser, 5.0)
    result = _sample(
        denoiser,
        algorithm,
        num_rows=20,
        num_steps=8,
        temperature=1.0,
        suppress_mask_token=False,
    )
    is_mask_BL = result.x == denoiser.info.mask_token_id
    is_given_L = torch.arange(LENGTH) < NUM_GIVEN
    assert 0 < is_mask_BL.sum() < is_mask_BL.numel() - 20 * NUM_GIVEN
    assert torch.equal(result.unmask_steps_BL == -1, is_mask_BL | is_given_L)
