import pytest
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import (
    RowBatch,
    SamplerConfig,
    algorithms_for,
    decide,
    get_sampler,
)
from masked_diffusion.sampling import logits_chunks, sample
from tests.sampler_choices import choices

ALGORITHMS = algorithms_for("absorbing")
LENGTHS = [14, 9, 12]


def _start(denoiser: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows: a prompt of three tokens, then masks; the last row has a mask in its prompt."""
    mask, length = denoiser.info.mask_token_id, max(LENGTHS)
    x_BL = torch.randint(3, 200, (3, length), generator=torch.Generator().manual_seed(0))
    frozen_BL = (torch.arange(length) < 3).expand(3, length).clone()
    x_BL[~frozen_BL] = mask
    x_BL[2, 1] = mask
    return x_BL, frozen_BL, torch.tensor(LENGTHS)


def _config(algorithm: str, **changes: object) -> SamplerConfig:
    fields = {"num_steps": 6, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "alg_temp": 0.5}
    return SamplerConfig(algorithm=algorithm, **(fields | choices(algorithm) | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trajectory_unmasks_what_is_free_and_touches_nothing_else(
    algorithm: str, tiny_denoiser: Denoiser
) -> None:
    x_BL, frozen_BL, lengths_B = _start(tiny_denoiser)
    before_BL = x_BL.clone()
    result = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=lengths_B,
        config=_config(algorithm),
        seeds=[1, 1, 1],
        sequence_ids=[0, 1, 2],
    )
    real_BL = torch.arange(x_BL.shape[1]) < lengths_B[:, None]
    free_BL = real_BL & ~frozen_BL
    assert torch.equal(x_BL, before_BL)
    assert torch.equal(result.x[~free_BL], x_BL[~free_BL])
    assert not bool((result.x[free_BL] == tiny_denoiser.info.mask_token_id).any())
    assert bool((result.x[free_BL] < tiny_denoiser.info.vocab_size).all())
    assert bool((result.unmask_steps_BL[~free_BL] == -1).all())
    assert bool(((result.unmask_steps_BL >= 0) & (result.unmask_steps_BL < 6))[free_BL].all())
    distinct_B = [len(set(steps) - {-1}) for steps in result.unmask_steps_BL.tolist()]
    for num_forwards, num_distinct in zip(result.num_forwards_B.tolist(), distinct_B, strict=True):
        assert num_distinct <= num_forwards <= 6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_sequence_decodes_alike_alone_and_in_a_padded_batch(
    algorithm: str, tiny_denoiser: Denoiser
) -> None:
    x_BL, frozen_BL, lengths_B = _start(tiny_denoiser)
    config = _config(algorithm)
    together = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=lengths_B,
        config=config,
        seeds=[5, 6, 7],
        sequence_ids=[0, 1, 2],
    )
    for b, length in enumerate(LENGTHS):
        alone = sample(
            tiny_denoiser,
            x_BL[b : b + 1, :length],
            frozen_BL=frozen_BL[b : b + 1, :length],
            lengths_B=lengths_B[b : b + 1],
            config=config,
            seeds=[5 + b],
            sequence_ids=[b],
        )
        assert torch.equal(alone.x[0], together.x[b, :length])
        assert torch.equal(alone.unmask_steps_BL[0], together.unmask_steps_BL[b, :length])
        assert alone.num_forwards_B[0] == together.num_forwards_B[b]


def test_one_step_unmasks_everything_with_one_forward(tiny_denoiser: Denoiser) -> None:
    x_BL, frozen_BL, lengths_B = _start(tiny_denoiser)
    for algorithm in ALGORITHMS:
        result = sample(
            tiny_denoiser,
            x_BL,
            frozen_BL=frozen_BL,
            lengths_B=lengths_B,
            config=_config(algorithm, num_steps=1),
            seeds=[0, 0, 0],
            sequence_ids=[0, 1, 2],
        )
        assert result.num_forwards_B.tolist() == [1, 1, 1]
        assert result.unmask_steps_BL[0].tolist() == [-1] * 3 + [0] * 11


def test_idle_steps_cost_no_forward(tiny_denoiser: Denoiser) -> None:
    x_BL, frozen_BL, lengths_B = _start(tiny_denoiser)
    result = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=lengths_B,
        config=_config("entropy", num_steps=40),
        seeds=[0, 0, 0],
        sequence_ids=[0, 1, 2],
    )
    assert result.num_forwards_B.tolist() == [
        len(set(steps) - {-1}) for steps in result.unmask_steps_BL.tolist()
    ]


def test_a_row_with_nothing_to_unmask_is_left_alone(tiny_denoiser: Denoiser) -> None:
    x_BL = torch.tensor([[5, 6, 7, 8]])
    for algorithm in ALGORITHMS:
        result = sample(
            tiny_denoiser,
            x_BL,
            frozen_BL=torch.zeros(1, 4, dtype=torch.bool),
            lengths_B=torch.tensor([4]),
            config=_config(algorithm),
            seeds=[0],
            sequence_ids=[0],
        )
        assert torch.equal(result.x, x_BL)
        assert result.num_forwards_B.tolist() == [0]
        assert result.unmask_steps_BL.tolist() == [[-1] * 4]


def test_the_greedy_one_step_result_is_the_argmax_of_the_logits(tiny_denoiser: Denoiser) -> None:
    x_BL, frozen_BL, lengths_B = _start(tiny_denoiser)
    result = sample(
        tiny_denoiser,
        x_BL[:1],
        frozen_BL=frozen_BL[:1],
        lengths_B=lengths_B[:1],
        config=_config("p2", num_steps=1, temperature=0.0),
        seeds=[0],
        sequence_ids=[0],
    )
    with torch.no_grad():
        likeliest_L = tiny_denoiser.logits(tiny_denoiser(x_BL[:1]))[0].argmax(-1)
    assert torch.equal(result.x[0, 3:], likeliest_L[3:])


def test_logits_do_not_depend_on_the_chunk(tiny_denoiser: Denoiser) -> None:
    hidden_MD = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, chunked = (
            torch.cat(list(logits_chunks(tiny_denoiser, hidden_MD, max_chunk_elements=size)))
            for size in (10**9, 1000)
        )
    # A product of other shape may round otherwise in the last bits.
    torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", ["p2", "low_confidence", "entropy"])
def test_guidance_equals_a_plain_loop_that_combines_logits(
    algorithm: str, tiny_denoiser: Denoiser
) -> None:
    """A greedy trajectory of one row, its two forwards apart, combined after the head."""
    x_BL, frozen_BL, _ = _start(tiny_denoiser)
    x_BL, frozen_BL, scale = x_BL[:1], frozen_BL[:1], 1.5
    config = _config(algorithm, temperature=0.0, alg_temp=0.0, guidance_scale=scale)
    result = sample(
        tiny_denoiser,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=torch.tensor([x_BL.shape[1]]),
        config=config,
        seeds=[3],
        sequence_ids=[0],
    )
    sampler, mask, num_forwards = get_sampler(algorithm), tiny_denoiser.info.mask_token_id, 0
    state_BL = x_BL
    for step in range(config.num_steps):
        rows = RowBatch(
            x_BL=state_BL,
            frozen_BL=frozen_BL,
            step_B=torch.tensor([step]),
            num_steps_B=torch.tensor([config.num_steps]),
            seeds=[3],
            sequence_ids=[0],
        )
        decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=mask)
        if not decided_BL.any():
            continue
        num_forwards += 2
        with torch.no_grad():
            given_BLV = tiny_denoiser.logits(tiny_denoiser(state_BL))
            free_BL = torch.where(frozen_BL, mask, state_BL)
            free_BLV = tiny_denoiser.logits(tiny_denoiser(free_BL))
        logits_BLV = free_BLV + (scale + 1) * (given_BLV - free_BLV)
        decisions = decide(
            sampler, rows, config, decided_BL=decided_BL, logits_chunks=[logits_BLV[decided_BL]]
        )
        state_BL = sampler.update(
            rows,
            config,
            mask_token_id=mask,
            decided_BL=decided_BL,
            tokens_BL=decisions.tokens_BL,
            confidence_BL=decisions.confidence_BL,
        )
    assert torch.equal(result.x, state_BL)
    assert result.num_forwards_B.tolist() == [num_forwards]
