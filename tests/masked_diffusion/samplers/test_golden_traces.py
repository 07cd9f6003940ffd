"""Every deterministic algorithm repeats, step by step, what Open-dLLM's own code did.

The traces were recorded from its `_mdm_sample` with the fake denoiser below.
"""

import pytest
import torch
from torch import Tensor

from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers import RowBatch, SamplerConfig, get_sampler, sample_tokens

VOCAB_SIZE, MASK, LENGTH = 10, 9, 8
START = [[1, 2, 9, 9, 9, 9, 9, 9], [1, 9, 9, 4, 5, 9, 9, 7]]

TRACES: dict[str, tuple[SamplerConfig, list[tuple[str, str]]]] = {
    "maskgit_plus": (
        SamplerConfig(algorithm="maskgit_plus", num_steps=4),
        [
            ("12990999", "19945997"),
            ("12990993", "19945697"),
            ("12990693", "19845697"),
            ("12820623", "11845687"),
        ],
    ),
    "topk_margin": (
        SamplerConfig(algorithm="topk_margin", num_steps=4),
        [
            ("12990999", "19945997"),
            ("12490999", "19945697"),
            ("12490998", "19845697"),
            ("12460778", "11845687"),
        ],
    ),
    "entropy": (
        SamplerConfig(algorithm="entropy", num_steps=4),
        [
            ("12199999", "19945997"),
            ("12191999", "19945927"),
            ("12191399", "19945427"),
            ("12161372", "14645427"),
        ],
    ),
    "entropy, filtered": (
        SamplerConfig(algorithm="entropy", num_steps=4, top_p=0.8, top_k=3),
        [
            ("12990999", "19945997"),
            ("12990993", "17945997"),
            ("12390993", "17045997"),
            ("12320823", "17045467"),
        ],
    ),
    "p2": (
        SamplerConfig(algorithm="p2", num_steps=4),
        [
            ("12990996", "19945697"),
            ("12690996", "18845997"),
            ("12690886", "18845397"),
            ("12670886", "18845377"),
        ],
    ),
    "p2, more steps": (
        SamplerConfig(algorithm="p2", num_steps=6),
        [
            ("12990999", "19945697"),
            ("12499993", "18845997"),
            ("12494399", "18945397"),
            ("12494394", "18045397"),
            ("12494314", "18045367"),
            ("12414314", "18045367"),
        ],
    ),
}


def fake_logits(x_BL: Tensor) -> Tensor:
    """Computes the aligned logits of the recorded fake denoiser: [B, L, V]."""
    positions_L = torch.arange(LENGTH, dtype=torch.float64)
    ids_V = torch.arange(VOCAB_SIZE, dtype=torch.float64)
    content_B = (x_BL * (positions_L + 1)).sum(-1)
    angle_LV = 0.7 * (positions_L + 1)[:, None] * (ids_V + 1)
    raw_BLV = 3 * torch.sin(angle_LV + 0.37 * content_B[:, None, None])
    raw_BLV[..., MASK] = EXCLUDED_LOGIT
    return torch.cat([raw_BLV[:, :1], raw_BLV[:, :-1]], dim=1).float()


def take_step(rows: RowBatch, config: SamplerConfig, *, poison: bool) -> Tensor:
    """Takes one step; with poison, whatever is not decided is NaN or nonsense."""
    sampler = get_sampler(config.algorithm)
    decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=MASK)
    samples = sample_tokens(
        fake_logits(rows.x_BL)[decided_BL],
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        confidence=sampler.confidence,
        uniforms_M=rows.uniforms("token")[decided_BL],
    )
    tokens_BL = torch.full_like(rows.x_BL, -7 if poison else 0)
    confidence_BL = torch.full(rows.x_BL.shape, float("nan") if poison else 0.0)
    tokens_BL[decided_BL] = samples.token_ids_M
    confidence_BL[decided_BL] = samples.confidence_M
    return sampler.update(
        rows,
        config,
        mask_token_id=MASK,
        decided_BL=decided_BL,
        tokens_BL=tokens_BL,
        confidence_BL=confidence_BL,
    )


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("name", TRACES)
def test_trace(name: str, poison: bool) -> None:
    config, expected = TRACES[name]
    x_BL = torch.tensor(START)
    frozen_BL = x_BL != MASK
    for step, states in enumerate(expected):
        rows = RowBatch(
            x_BL=x_BL,
            frozen_BL=frozen_BL,
            step_B=torch.full((2,), step),
            num_steps_B=torch.full((2,), config.num_steps),
            seeds=[0, 0],
            sequence_ids=[0, 1],
        )
        x_BL = take_step(rows, config, poison=poison)
        assert ["".join(map(str, row)) for row in x_BL.tolist()] == list(states), step


def test_rows_at_different_steps_of_different_trajectories_share_a_batch() -> None:
    """The second row of the four-step trace of p2 beside the first of the six-step one."""
    config = TRACES["p2"][0]
    rows = RowBatch(
        x_BL=torch.tensor([[1, 2, 4, 9, 4, 3, 9, 9], [1, 9, 9, 4, 5, 6, 9, 7]]),
        frozen_BL=torch.tensor(START) != MASK,
        step_B=torch.tensor([3, 1]),
        num_steps_B=torch.tensor([6, 4]),
        seeds=[0, 0],
        sequence_ids=[0, 1],
    )
    x_BL = take_step(rows, config, poison=True)
    assert x_BL.tolist() == [[1, 2, 4, 9, 4, 3, 9, 4], [1, 8, 8, 4, 5, 9, 9, 7]]
