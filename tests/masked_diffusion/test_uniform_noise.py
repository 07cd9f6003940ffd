import torch

from masked_diffusion import checkpoints, schedule
from masked_diffusion.families import DenoiserInfo
from masked_diffusion.families.mdlm_config import MdlmConfig
from masked_diffusion.noise import FORWARD_PROCESSES
from masked_diffusion.randomness import keyed_uniforms_batch
from masked_diffusion.uniform_noise import replace_tokens, start_states, uniform_ids

VOCAB_SIZE, MASK = 7, 3


def _info() -> DenoiserInfo:
    config = MdlmConfig(
        vocab_size=VOCAB_SIZE, hidden_dim=4, n_heads=1, n_blocks=1, mask_token_id=MASK
    )
    config.noise = "uniform"
    return checkpoints.new_denoiser(config, None, seed=0).info


INFO = _info()


def _uniforms(num_rows: int, length: int, stream: str, *, seed: int = 0) -> torch.Tensor:
    return keyed_uniforms_batch(
        seeds=[seed] * num_rows,
        sequence_ids=range(num_rows),
        steps=[0] * num_rows,
        length=length,
        stream=stream,
    )


def test_uniforms_are_dealt_evenly_over_all_ids_but_the_mask() -> None:
    grid = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    counts = torch.bincount(uniform_ids(grid, INFO), minlength=VOCAB_SIZE)
    assert counts.tolist() == [100, 100, 100, 0, 100, 100, 100]
    extremes = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    assert uniform_ids(extremes, INFO).tolist() == [0, VOCAB_SIZE - 1]


def test_noise_comes_as_often_as_the_kernel_says() -> None:
    num_rows, length, clean = 8, 4000, 5
    t_B = torch.linspace(0.05, 1.0, num_rows)
    batch = FORWARD_PROCESSES["uniform"](
        torch.full((num_rows, length), clean),
        info=INFO,
        noisable_BL=torch.ones(num_rows, length, dtype=torch.bool),
        t_B=t_B,
        lengths_B=torch.full((num_rows,), length),
        draw=lambda stream: _uniforms(num_rows, length, stream),
    )
    alpha_B = schedule.alpha(t_B.double())
    support_size = VOCAB_SIZE - 1
    for token in range(VOCAB_SIZE):
        share_B = (batch.xt_BL == token).double().mean(1)
        if token == MASK:
            assert not share_B.any()
            continue
        expected_B = alpha_B * (token == clean) + (1 - alpha_B) / support_size
        # Five standard deviations of a binomial share: one in a million, 48 times.
        bound_B = 5 * (expected_B * (1 - expected_B) / length).sqrt()
        assert bool(((share_B - expected_B).abs() <= bound_B).all()), token


def test_every_noisable_position_carries_a_loss_and_no_other_is_touched() -> None:
    x0_BL = torch.tensor([[0, 1, 2, 4, 5], [6, 0, 1, 2, 4]])
    noisable_BL = torch.tensor(
        [[False, True, True, True, False], [True, True, False, False, False]]
    )
    batch = replace_tokens(
        x0_BL,
        noisable_BL=noisable_BL,
        t_B=torch.ones(2),
        uniforms_BL=torch.full((2, 5), 0.5),
        noise_BL=torch.full((2, 5), 6),
        lengths_B=torch.tensor([5, 3]),
    )
    assert torch.equal(batch.loss_BL, noisable_BL)
    assert torch.equal(batch.xt_BL, x0_BL.masked_fill(noisable_BL, 6))
    assert torch.equal(batch.x0_BL, x0_BL)


def test_absorbing_noise_masks_and_has_a_loss_at_the_masks() -> None:
    x0_BL = torch.tensor([[0, 1, 2, 4, 5]])
    batch = FORWARD_PROCESSES["absorbing"](
        x0_BL,
        info=INFO,
        noisable_BL=torch.ones(1, 5, dtype=torch.bool),
        t_B=torch.tensor([0.5]),
        lengths_B=torch.tensor([5]),
        draw=lambda stream: _uniforms(1, 5, stream),
    )
    assert torch.equal(batch.loss_BL, _uniforms(1, 5, "mask") < 0.5)
    assert torch.equal(batch.xt_BL, x0_BL.masked_fill(batch.loss_BL, MASK))


def test_a_start_state_is_noise_where_tokens_are_asked_for_and_belongs_to_its_sequence() -> None:
    x_BL = torch.tensor([[MASK, 0, MASK, 5, MASK], [MASK, 0, MASK, 5, MASK]])
    frozen_BL = torch.zeros(2, 5, dtype=torch.bool)
    frozen_BL[:, 3] = True

    def started(rows: list[int]) -> torch.Tensor:
        return start_states(
            x_BL[rows],
            frozen_BL=frozen_BL[rows],
            info=INFO,
            seeds=[4] * len(rows),
            sequence_ids=rows,
        )

    noisy_BL = started([0, 1])
    given_BL = x_BL != MASK
    assert torch.equal(noisy_BL[given_BL], x_BL[given_BL])
    assert not bool((noisy_BL == MASK).any())
    assert torch.equal(started([1])[0], noisy_BL[1])
    assert not torch.equal(noisy_BL[0], noisy_BL[1])
