import numpy as np
import pytest
import torch

from masked_diffusion import schedule


def test_alpha_and_mask_probability_share_the_whole() -> None:
    t = torch.linspace(0, 1, 5)
    torch.testing.assert_close(schedule.alpha(t) + schedule.mask_probability(t), torch.ones(5))
    assert schedule.alpha(0.0) == 1.0
    assert schedule.mask_probability(1.0) == 1.0


def test_timesteps_run_evenly_from_one_to_eps() -> None:
    t_S = schedule.timesteps(4, eps=0.2)
    torch.testing.assert_close(t_S, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))
    assert t_S.dtype == torch.float32


def test_unmask_fractions_follow_the_formula_and_end_with_everything() -> None:
    num_steps, eps = 50, 1e-3
    exact = [(1 - eps) / (num_steps - i * (1 - eps)) for i in range(num_steps - 1)]
    fractions = [schedule.unmask_fraction(i, num_steps, eps=eps) for i in range(num_steps)]
    # 1 - s/t loses up to two float32 roundings of numbers near one.
    np.testing.assert_allclose(fractions[:-1], exact, atol=2**-22, rtol=2**-20)
    assert fractions[-1] == 1.0


def test_unmask_fractions_are_a_copy() -> None:
    schedule.unmask_fractions(3).zero_()
    assert schedule.unmask_fraction(2, 3) == 1.0


@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1])
def test_bad_eps_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must lie between 0 and 1"):
        schedule.timesteps(4, eps=eps)


def test_bad_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        schedule.timesteps(0)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 4\), got 4"):
        schedule.unmask_fraction(4, 4)
