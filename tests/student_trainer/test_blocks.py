"""Blocks that are recomputed or compiled compute what they computed before."""

import copy

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer.blocks import prepare_blocks
from student_trainer.train_options import ShardingOptions
from tests import tiny_models

IDS_BL = torch.tensor([[1, 7, 2, 9, 2, 30]])


@pytest.fixture
def student(tiny_tokenizer) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), num_layers=1)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=5)


def step(denoiser: Denoiser) -> list[torch.Tensor]:
    """The loss and all gradients."""
    loss = denoiser.hidden_states(IDS_BL).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in denoiser.parameters() if p.grad is not None)]


def test_recomputed_blocks_have_the_same_gradients_to_the_bit(student):
    plain = copy.deepcopy(student)
    prepare_blocks(student, ShardingOptions(enable_gradient_checkpointing=True))
    num_calls = 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    student.blocks[0].mlp.register_forward_pre_hook(count)
    assert all(map(torch.equal, step(student), step(plain)))
    assert num_calls == 2


@pytest.mark.slow
# The compiler warns of torch's own old code, and breaks where a warning is an error.
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_have_the_same_gradients_and_names(student):
    plain = copy.deepcopy(student)
    prepare_blocks(student, ShardingOptions(enable_compile=True))
    # Fused sums in another order, in float32.
    for ours, theirs in zip(step(student), step(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert student.state_dict().keys() == plain.state_dict().keys()
