import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion.samplers.inverse_cdf import invert_cdf


def test_the_inverse_cdf_ends_at_ids_with_mass() -> None:
    p_MV = torch.tensor([[0.0, 0.3, 0.0, 0.3, 0.9, 0.0, 0.0]])
    edges = torch.tensor([2.0**-60, 0.2, 0.2 + 1e-6, 0.4 + 1e-6, 1 - 2.0**-53], dtype=torch.float64)
    drawn = invert_cdf(p_MV.expand(5, -1), edges)
    assert drawn.tolist() == [1, 1, 3, 4, 4]


@given(st.floats(2.0**-10, 2.0, width=32), st.integers(1, 5))
def test_the_largest_uniform_still_draws_an_id(mass: float, num_ids: int) -> None:
    p_MV = torch.full((1, num_ids + 1), mass)
    p_MV[0, -1] = 0
    drawn = invert_cdf(p_MV, torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert drawn.item() < num_ids
