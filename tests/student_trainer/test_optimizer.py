"""What decays, and the learning rate of each step."""

import math

import pytest
import torch
from torch import nn

from student_trainer.config import TrainConfig
from student_trainer.optimizer import learning_rate, new_optimizers


def config(**fields) -> TrainConfig:
    return TrainConfig(output_dir="unused", **fields)


def test_only_matrices_decay():
    module = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    module[2].weight.requires_grad_(False)

    (optimizer,) = new_optimizers(module, config(weight_decay=0.3))

    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay == {
        id(module[0].weight): 0.3,
        id(module[1].weight): 0.0,
        id(module[1].bias): 0.0,
        id(module[2].bias): 0.0,
    }


def test_decay_is_decoupled_from_the_gradient():
    module = nn.Linear(2, 2, bias=False)
    before = module.weight.detach().clone()
    (optimizer,) = new_optimizers(module, config(weight_decay=0.5, lr=0.1))
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.1 * 0.5))


def test_warm_up_rises_in_equal_parts_to_the_peak():
    settings = config(lr=1.0, lr_warmup_ratio=0.2)
    rates = [learning_rate(step, num_steps=20, config=settings) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("cosine", lambda progress: (1 + math.cos(math.pi * progress)) / 2),
        ("linear", lambda progress: 1 - progress),
        ("constant", lambda progress: 1.0),
    ],
)
def test_the_rate_falls_to_its_least_as_named(style, share):
    settings = config(lr=1.0, lr_min=0.2, lr_warmup_ratio=0.1, lr_decay_style=style)
    for step in range(2, 20):
        rate = learning_rate(step, num_steps=20, config=settings)
        assert rate == pytest.approx(0.2 + 0.8 * share((step - 2) / 18))


def test_a_run_of_one_step_takes_the_whole_rate():
    assert learning_rate(0, num_steps=1, config=config(lr=0.3)) == pytest.approx(0.3)
    assert learning_rate(0, num_steps=1, config=config(lr=0.3, lr_warmup_ratio=0.0)) == 0.3


def test_wsd_stays_and_falls_in_the_last_steps():
    settings = config(
        lr=1.0, lr_min=0.2, lr_warmup_ratio=0.1, lr_decay_style="wsd", lr_decay_ratio=0.25
    )
    rates = [learning_rate(step, num_steps=20, config=settings) for step in range(20)]
    assert rates[:2] == pytest.approx([0.5, 1.0])
    assert rates[2:16] == [1.0] * 14
    assert rates[15:] == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36])


def test_muon_takes_the_matrices_of_the_blocks_alone():
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)]
    module = nn.ModuleList([nn.Embedding(5, 4), *blocks, nn.Linear(4, 5, bias=False)])
    muon, adamw = new_optimizers(module, config(optimizer="muon"), blocks=blocks)
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert taken == {id(block[0].weight) for block in blocks}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert taken | others == {id(p) for p in module.parameters()} and not taken & others


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_eight_bit_states_without_a_gpu_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"adamw_8bit needs a GPU, .* use adamw, or adafactor"):
        new_optimizers(nn.Linear(2, 2), config(optimizer="adamw_8bit"))


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw_8bit"])
def test_what_cannot_step_shards_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"train.optimizer must be adamw or muon with .*=fsdp"):
        config(optimizer=optimizer, data_parallel_mode="fsdp")
