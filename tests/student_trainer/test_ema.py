"""The moving average against its sum written out in float64."""

import pytest
import torch
from torch import nn

from student_trainer.ema import WeightAverage


def test_it_is_the_weighted_sum_of_all_weights_so_far():
    module = nn.Linear(3, 2, bias=False)
    history = [module.weight.detach().double()]
    average = WeightAverage(module, decay=0.8)
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(0.1 * (step + 1))
        history.append(module.weight.detach().double().clone())
        average.update()
    expected = 0.8**5 * history[0]
    for age, weight in enumerate(reversed(history[1:])):
        expected = expected + 0.2 * 0.8**age * weight
    torch.testing.assert_close(average.averages["weight"].double(), expected, atol=1e-6, rtol=0)


def test_frozen_weights_have_no_average():
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert WeightAverage(module, decay=0.5).averages.keys() == {"weight"}


def test_weights_come_back_after_the_block_even_if_it_fails():
    module = nn.Linear(3, 2, bias=False)
    average = WeightAverage(module, decay=0.5)
    old = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(2.0)
    average.update()
    now = module.weight.detach().clone()
    with pytest.raises(KeyError), average.swapped():
        torch.testing.assert_close(module.weight.detach(), (old + now) / 2)
        raise KeyError
    assert torch.equal(module.weight, now)
    torch.testing.assert_close(average.averages["weight"], (old + now) / 2)
