"""Adapters: what is trained, where they begin, and that merging them is exact."""

import copy

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer.full_weights import full_weights
from student_trainer.lora import add_adapters
from student_trainer.train_options import UpdateOptions
from tests import tiny_models
from tests.fixtures import diffugpt

IDS_BL = torch.tensor([[1, 7, 2, 9, 2, 30]])


@pytest.fixture
def student(tiny_tokenizer) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), num_layers=1)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=5).eval()


def moved(denoiser: Denoiser) -> None:
    """Gives the adapters, which begin at nothing, something to do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in denoiser.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(student):
    plain = copy.deepcopy(student)
    add_adapters(student, UpdateOptions(lora_rank=3))
    with torch.no_grad():
        assert torch.equal(student.hidden_states(IDS_BL), plain.hidden_states(IDS_BL))
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    # Both matrices of all seven linear layers of the one block.
    assert len(trained) == 14


def test_named_layers_alone_get_one(student):
    add_adapters(student, UpdateOptions(lora_rank=2, lora_target_modules=["q_proj", "v_proj"]))
    trained = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all("q_proj" in name or "v_proj" in name for name in trained)


def test_every_rank_begins_with_the_same_and_the_global_generator_is_left_alone(student):
    other = copy.deepcopy(student)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    add_adapters(student, UpdateOptions(lora_rank=2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    add_adapters(other, UpdateOptions(lora_rank=2))
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_merged_weights_compute_what_adapters_compute(student, tiny_tokenizer):
    plain = copy.deepcopy(student)
    add_adapters(student, UpdateOptions(lora_rank=2, lora_alpha=8.0))
    moved(student)
    merged = full_weights(student)
    assert merged.keys() <= plain.model.state_dict().keys()
    plain.model.load_state_dict(merged, strict=False)
    with torch.no_grad():
        ours, theirs = student.hidden_states(IDS_BL), plain.hidden_states(IDS_BL)
    # One product instead of two, in float32.
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_layers_that_hold_their_matrix_the_other_way_round_are_merged_so(tmp_path):
    fixture = diffugpt.FIXTURES[0]
    fixture.build(tmp_path)
    student = checkpoints.load_denoiser(str(tmp_path), **fixture.load_options)
    plain = copy.deepcopy(student)
    add_adapters(student, UpdateOptions(lora_rank=2))
    moved(student)
    plain.model.load_state_dict(full_weights(student), strict=False)
    with torch.no_grad():
        ours, theirs = student.hidden_states(IDS_BL), plain.hidden_states(IDS_BL)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
