import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.probe_states import TIMES, make_probe_states, masked_hidden_states
from tests import tiny_models


def test_states_are_the_same_every_time_and_others_with_another_seed(
    tiny_denoiser: Denoiser,
) -> None:
    one, again, other = (make_probe_states(tiny_denoiser, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.ids_BL, again.ids_BL)
    assert not torch.equal(one.ids_BL, other.ids_BL)


def test_every_state_is_masked_as_its_time_says(tiny_denoiser: Denoiser) -> None:
    states = make_probe_states(tiny_denoiser, seed=0)
    info = tiny_denoiser.info
    assert bool((states.ids_BL[states.masked_BL] == info.mask_token_id).all())
    assert not bool((states.ids_BL[~states.masked_BL] == info.mask_token_id).any())
    assert bool(states.masked_BL.any(-1).all())
    # Nothing is known of the first position of a shifted checkpoint.
    assert not bool(states.masked_BL[:, : info.num_invalid_leading_positions].any())
    for time in TIMES:
        rows = states.times_B == torch.tensor(time)
        num_positions = int((states.lengths_B[rows] - info.num_invalid_leading_positions).sum())
        fraction = int(states.masked_BL[rows].sum()) / num_positions
        # Five standard deviations of a binomial.
        assert abs(fraction - time) < 5 * (time * (1 - time) / num_positions) ** 0.5


def test_hidden_states_are_those_of_each_state_alone(tiny_denoiser: Denoiser) -> None:
    states = make_probe_states(tiny_denoiser, seed=0)
    alone = []
    with torch.no_grad():
        for row, length in enumerate(states.lengths_B.tolist()):
            hidden_BLD = tiny_denoiser(states.ids_BL[row : row + 1, :length])
            alone.append(hidden_BLD[0, states.masked_BL[row, :length]])
    # Rounding of another batch shape in float32.
    torch.testing.assert_close(
        masked_hidden_states(tiny_denoiser, states), torch.cat(alone), atol=1e-4, rtol=0
    )


def test_without_a_tokenizer_the_ids_are_random_but_ordinary() -> None:
    config = tiny_models.qwen2_config(vocab_size=50)
    denoiser = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=49).eval()
    states = make_probe_states(denoiser, seed=0)
    assert states.source == "random ids"
    assert int(states.ids_BL[~states.masked_BL].max()) < 49


def test_uniform_noise_puts_ordinary_ids_in_place_of_masks() -> None:
    config = tiny_models.qwen2_config(vocab_size=50)
    config.noise = "uniform"
    denoiser = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=49).eval()
    states = make_probe_states(denoiser, seed=0)
    assert not bool((states.ids_BL == 49).any())
    assert bool(states.masked_BL.any(-1).all())
