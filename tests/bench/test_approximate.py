import json

import pytest
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from tests.bench import approximate
from tests.bench.exact_chain import divergences, trace

DREW_ONE_A_STEP = 0.0


def _states(denoiser: Denoiser) -> torch.Tensor:
    x_BL = torch.randint(denoiser.info.vocab_size, (2, 9), generator=torch.Generator())
    return x_BL.index_fill(1, torch.tensor([2, 3, 5, 8]), denoiser.info.mask_token_id)


def _config(denoiser_steps: int, bound: float) -> SamplerConfig:
    return SamplerConfig(
        algorithm="entropy_bounded",
        num_steps=denoiser_steps,
        temperature=1.0,
        entropy_bound=bound,
    )


def test_divergence_is_the_plain_sum_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    p_MV = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    q_MV = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    p_MV, q_MV = p_MV / p_MV.sum(-1, keepdim=True), q_MV / q_MV.sum(-1, keepdim=True)
    plain = [
        sum(float(p * (p / q).log()) for p, q in zip(a, b, strict=True))
        for a, b in zip(p_MV, q_MV, strict=True)
    ]
    assert divergences(p_MV.log() + 7, q_MV.log()).tolist() == pytest.approx(plain, rel=1e-12)
    # An id that cannot occur counts nothing, as the mask id.
    excluded_M1 = torch.full((3, 1), -1e30, dtype=torch.float64)
    longer = (torch.cat([rows_MV.log(), excluded_M1], -1) for rows_MV in (p_MV, q_MV))
    assert divergences(*longer).tolist() == pytest.approx(plain, rel=1e-12)


def test_one_position_a_step_is_the_exact_chain(tiny_denoiser: Denoiser) -> None:
    traced = trace(tiny_denoiser, _states(tiny_denoiser), _config(4, bound=0.0))
    assert traced.num_forwards == traced.num_positions == 8
    assert traced.kl == [DREW_ONE_A_STEP] * 8


def test_all_positions_of_one_step_are_compared_with_the_states_between(
    tiny_denoiser: Denoiser,
) -> None:
    x_BL = _states(tiny_denoiser)[:1]
    traced = trace(tiny_denoiser, x_BL, _config(1, bound=0.0))
    assert traced.num_forwards == 1 and traced.num_positions == 4
    # Plainer: the tokens are those of a one-step trajectory, the order that of entropies.
    x0_L = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=x_BL != tiny_denoiser.info.mask_token_id,
        lengths_B=torch.tensor([9]),
        config=_config(1, bound=0.0),
        seeds=[0],
        sequence_ids=[0],
    ).x[0]
    log_p_LV = _log_probs(tiny_denoiser, x_BL[0])
    entropy_L = -(log_p_LV.exp() * log_p_LV).sum(-1)
    state_L, expected = x_BL[0].clone(), []
    for position in sorted([2, 3, 5, 8], key=lambda at: float(entropy_L[at])):
        log_q_V = _log_probs(tiny_denoiser, state_L)[position]
        log_p_V = log_p_LV[position]
        expected.append(float((log_p_V.exp() * (log_p_V - log_q_V)).sum()))
        state_L[position] = x0_L[position]
    # Logits are float32, of about 1: their rounding squared is nothing, once it is 1e-6.
    assert traced.kl == pytest.approx(expected, abs=1e-5)
    assert max(traced.kl) > 1e-4


def _log_probs(denoiser: Denoiser, x_L: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return denoiser.logits(denoiser(x_L[None]))[0].double().log_softmax(-1)


def test_bench_of_a_tiny_model_has_every_figure(tiny_denoiser: Denoiser) -> None:
    model = approximate.measure(tiny_denoiser, _states(tiny_denoiser), bounds=(0.0, 1e9))
    result = {"models": {"tiny": model}}
    json.dumps(result)
    exact, everything = model["entropy_bounded"]
    assert exact["forwards_ratio"] == 1 and exact["kl_per_position"] == 0
    assert everything["forwards_ratio"] == 0.25 and everything["kl_per_position"] > 0
    assert "KL/position" in approximate.table(result)
    assert len(approximate.figure(result).axes) == 1
