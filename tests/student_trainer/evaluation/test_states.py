"""The states that every model is measured on."""

import dataclasses

import pytest
import torch

from student_trainer.data import Chunking, tokenize_documents
from student_trainer.documents import Document
from student_trainer.evaluation.states import held_out_states
from tests.tiny_models import PYTHON_SOURCES


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer):
    documents = [
        Document(text=f"{source}value = {index}\n" * 2, prompt="x = 1\n" * (index % 2), source="")
        for index in range(10)
        for source in PYTHON_SOURCES
    ]
    return tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=32, min_chunk_tokens=4)
    )


@pytest.fixture
def info(tiny_denoiser):
    return tiny_denoiser.info


def test_a_state_masks_its_share_of_tokens_and_never_what_is_given(dataset, info):
    states = held_out_states(
        dataset, denoiser_info=info, num_sequences=40, seed=1, masks_per_sequence=3
    )

    assert len(states.t_B) == 120
    assert states.sequences_B.tolist() == [row // 3 for row in range(120)]
    special = torch.tensor(info.special_token_ids)
    prompts = {tuple(dataset.sequence(row)): n for row, n in enumerate(dataset.prompt_lengths)}
    for x0_L, xt_L, masked_L, t, length in zip(
        states.x0_BL, states.xt_BL, states.masked_BL, states.t_B, states.lengths_B, strict=True
    ):
        prompt_length = prompts[tuple(x0_L[:length].tolist())]
        maskable_L = ~torch.isin(x0_L, special)
        maskable_L[:prompt_length] = False
        maskable_L[length:] = False
        assert not (masked_L & ~maskable_L).any()
        assert masked_L.sum() >= 1
        assert t == pytest.approx(float(masked_L.sum() / maskable_L.sum()), rel=1e-6)
        assert torch.equal(xt_L, torch.where(masked_L, info.mask_token_id, x0_L))


def test_times_are_spread_evenly_over_sequences_and_over_the_masks_of_each(dataset, info):
    states = held_out_states(
        dataset, denoiser_info=info, num_sequences=50, seed=1, masks_per_sequence=4
    )
    t_NR = states.t_B.view(50, 4)
    num_maskable = states.masked_BL.sum(dim=1) / states.t_B
    rounding = 1 / float(num_maskable.min())  # t is a multiple of 1 / num_maskable

    first = t_NR[:, 0].sort().values
    assert ((first - (torch.arange(50) + 0.5) / 50).abs() <= 0.5 / 50 + rounding).all()
    within = t_NR.sort(dim=1).values
    assert ((within.diff(dim=1) - 0.25).abs() <= rounding + 1e-6).all()


def test_states_depend_on_the_seed_alone(dataset, info):
    first = held_out_states(dataset, denoiser_info=info, num_sequences=10, seed=1)
    other_model = dataclasses.replace(info, name="other", hidden_size=8, num_parameters=1)
    again = held_out_states(dataset, denoiser_info=other_model, num_sequences=10, seed=1)
    other_seed = held_out_states(dataset, denoiser_info=info, num_sequences=10, seed=2)

    assert torch.equal(first.xt_BL, again.xt_BL)
    assert not torch.equal(first.t_B, other_seed.t_B)


def test_more_sequences_than_there_are_is_an_error(dataset, info):
    with pytest.raises(ValueError, match=f"1000 held-out .* {len(dataset)} available"):
        held_out_states(dataset, denoiser_info=info, num_sequences=1000, seed=1)
