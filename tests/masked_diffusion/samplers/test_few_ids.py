import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion.samplers.few_ids import few_ids_softmax
from masked_diffusion.samplers.largest import at_least_kth


@given(
    logits=st.lists(st.integers(-6, 6), min_size=2, max_size=12),
    k=st.integers(1, 5),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    uniform=st.floats(1e-9, 1 - 1e-9),
)
def test_draws_and_measures_equal_float64_over_what_is_kept(
    logits: list[int], k: int, temperature: float, uniform: float
) -> None:
    # Beside a row of many equals, whose width pads the first.
    logits_MV = torch.tensor([logits, [0] * len(logits)], dtype=torch.float32)
    softmax = few_ids_softmax(at_least_kth(logits_MV, k), temperature=temperature)
    kth = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    masses = [math.exp(x / temperature) if x >= kth else 0.0 for x in logits]
    p = [mass / sum(masses) for mass in masses]
    first, second = sorted(p, reverse=True)[:2]
    assert softmax.margins()[0].item() == pytest.approx(first - second, abs=1e-6)
    entropy = sum(x * math.log(x) for x in p if x)
    assert softmax.negative_entropies()[0].item() == pytest.approx(entropy, abs=1e-5)
    drawn = int(softmax.draw(torch.full((2,), uniform, dtype=torch.float64))[0])
    edges = [sum(p[: index + 1]) for index in range(len(p))]
    if min(abs(edge - uniform) for edge in edges) > 1e-6:
        assert drawn == next(index for index, edge in enumerate(edges) if edge > uniform)
    assert p[drawn] > 0
    got = softmax.probabilities(torch.tensor([drawn, 0]))[0].item()
    assert got == pytest.approx(p[drawn], rel=1e-5)


def test_the_last_id_is_told_from_padding() -> None:
    logits_MV = torch.tensor([[0.0, 1.0, 5.0], [3.0, 3.0, 3.0]])
    softmax = few_ids_softmax(at_least_kth(logits_MV, 1), temperature=1.0)
    assert softmax.kept.ids_MN.shape == (2, 3)
    uniforms_M = torch.tensor([0.999, 0.999], dtype=torch.float64)
    assert softmax.draw(uniforms_M).tolist() == [2, 2]
    torch.testing.assert_close(
        softmax.probabilities(torch.tensor([2, 2])), torch.tensor([1.0, 1 / 3])
    )
