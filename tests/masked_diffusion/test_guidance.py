import pytest
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.guidance import guided_hidden_states, unconditional_states
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from tests.biased_denoiser import BiasedDenoiser


@pytest.fixture(scope="module")
def biased(tiny_denoiser: Denoiser) -> BiasedDenoiser:
    generator = torch.Generator().manual_seed(5)
    size = tiny_denoiser.info.padded_vocab_size
    return BiasedDenoiser(tiny_denoiser, 3 * torch.randn(size, generator=generator))


def _slow_logits(denoiser: Denoiser, hidden_MD: Tensor) -> Tensor:
    """[M, V] float64, the mask id left out."""
    assert denoiser.head_bias is not None
    size = denoiser.info.vocab_size
    weight_VD, bias_V = denoiser.head_weight[:size].double(), denoiser.head_bias[:size].double()
    logits_MV = hidden_MD.double() @ weight_VD.T + bias_V
    logits_MV[:, denoiser.info.mask_token_id] = -torch.inf
    return logits_MV


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_guided_hidden_states_have_the_guided_logits_of_a_head_with_a_bias(
    scale: float, biased: BiasedDenoiser
) -> None:
    """The weights of the two sum to 1, so the bias stays as it is."""
    generator = torch.Generator().manual_seed(0)
    h_MD, u_MD = torch.randn(2, 20, biased.info.hidden_size, generator=generator)
    guided_MD = guided_hidden_states(h_MD, u_MD, guidance_scale=scale)
    h_MV, u_MV = (_slow_logits(biased, hidden_MD).log_softmax(-1) for hidden_MD in (h_MD, u_MD))
    expected_MV = u_MV + (scale + 1) * (h_MV - u_MV)
    keep_V = torch.arange(biased.info.vocab_size) != biased.info.mask_token_id
    with torch.no_grad():
        log_probs_MV = biased.logits(guided_MD)[:, keep_V].double().log_softmax(-1)
    # float32 products of 32 terms, up to five times as large as without guidance.
    torch.testing.assert_close(
        log_probs_MV, expected_MV[:, keep_V].log_softmax(-1), atol=2e-5, rtol=0
    )


def test_a_scale_for_each_row_guides_each_row_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    h_BLD, u_BLD = torch.randn(2, 3, 4, 8, generator=generator)
    scales_B = torch.tensor([0.5, 1.0, 2.5])
    together_BLD = guided_hidden_states(h_BLD, u_BLD, guidance_scale=scales_B[:, None, None])
    for b, scale in enumerate(scales_B.tolist()):
        alone_LD = guided_hidden_states(h_BLD[b], u_BLD[b], guidance_scale=scale)
        assert torch.equal(together_BLD[b], alone_LD)
    assert torch.equal(guided_hidden_states(h_BLD, h_BLD, guidance_scale=3.0), h_BLD), (
        "a prompt that changes nothing guides nowhere"
    )


def test_guidance_of_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(2)
    h, u = torch.randn(2, 50, generator=generator).bfloat16()
    guided = guided_hidden_states(h, u, guidance_scale=1.5)
    expected = (u.double() + 2.5 * (h.double() - u.double())).bfloat16()
    assert guided.dtype == torch.bfloat16
    torch.testing.assert_close(guided, expected, atol=0, rtol=2**-8)


def test_only_what_is_given_is_masked_for_the_unconditional_states() -> None:
    x_BL = torch.tensor([[5, 6, 99, 7]])
    given_BL = torch.tensor([[True, False, False, False]])
    free_BL = unconditional_states(x_BL, given_BL, mask_token_id=99)
    assert free_BL.tolist() == [[99, 6, 99, 7]]
    assert x_BL.tolist() == [[5, 6, 99, 7]]


def test_a_guided_greedy_step_takes_the_likeliest_of_the_guided_logits(
    biased: BiasedDenoiser,
) -> None:
    mask, scale = biased.info.mask_token_id, 2.0
    x_BL = torch.tensor([[5, 60, 110, 7, *[mask] * 8]])
    frozen_BL = x_BL != mask
    result = sample(
        biased,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=torch.tensor([12]),
        config=SamplerConfig(algorithm="p2", num_steps=1, guidance_scale=scale),
        seeds=[0],
        sequence_ids=[0],
    )
    with torch.no_grad():
        h_MD = biased(x_BL)[0, 4:]
        u_MD = biased(torch.full_like(x_BL, mask))[0, 4:]
    h_MV, u_MV = _slow_logits(biased, h_MD), _slow_logits(biased, u_MD)
    guided_MV = (u_MV + (scale + 1) * (h_MV - u_MV)).nan_to_num(nan=-torch.inf)
    assert result.x[0, 4:].tolist() == guided_MV.argmax(-1).tolist()
    assert guided_MV.argmax(-1).tolist() != h_MV.argmax(-1).tolist()
    assert result.num_forwards_B.tolist() == [2]
