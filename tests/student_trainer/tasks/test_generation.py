"""Generated answers: what is drawn for whom, where an answer ends, what is refused."""

import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from student_trainer.tasks.decoding import Decoding
from student_trainer.tasks.generation import (
    GenerationRequest,
    end_token_ids,
    generate,
    generate_ids,
    key_of,
    read_answer,
)
from tests.tiny_models import qwen2_config


def decoding(max_new_tokens=6, *, until=(), **sampler):
    config = {"algorithm": "low_confidence", "num_steps": max_new_tokens, **sampler}
    return Decoding(max_new_tokens=max_new_tokens, sampler=SamplerConfig(**config), until=until)


def request_of(ids, **choices):
    return GenerationRequest(prompt_ids=tuple(ids), decoding=decoding(**choices))


MIXED = [
    request_of(range(10, 10 + length), temperature=temperature, max_new_tokens=new, num_steps=3)
    for length in (3, 9, 5)
    for temperature, new in ((0.0, 6), (1.0, 6), (1.0, 4))
]


def test_an_answer_is_that_of_the_sampler_alone(tiny_denoiser):
    request = request_of((5, 6, 7), temperature=1.0)

    (answer,) = generate_ids(tiny_denoiser, [request], seed=11, batch_size=1)

    x_1L = torch.tensor([[5, 6, 7] + 6 * [tiny_denoiser.info.mask_token_id]])
    result = sample(
        tiny_denoiser,
        x_1L,
        frozen_BL=torch.tensor([[True] * 3 + [False] * 6]),
        lengths_B=torch.tensor([9]),
        config=request.decoding.sampler,
        seeds=[11],
        sequence_ids=[key_of((5, 6, 7))],
    )
    assert answer == result.x[0, 3:].tolist()


def test_an_answer_does_not_depend_on_the_batch_or_the_order(tiny_denoiser):
    together = generate_ids(tiny_denoiser, MIXED, seed=0, batch_size=4)

    backwards = generate_ids(tiny_denoiser, MIXED[::-1], seed=0, batch_size=3)[::-1]
    alone = [generate_ids(tiny_denoiser, [r], seed=0, batch_size=1)[0] for r in MIXED]

    assert together == backwards == alone
    assert [len(answer) for answer in together] == [6, 6, 4] * 3


def test_samples_of_one_prompt_differ_and_come_again_with_the_seed(tiny_denoiser):
    requests = [request_of((5, 6, 7), temperature=1.0)] * 5

    first = generate_ids(tiny_denoiser, requests, seed=0, batch_size=5)

    assert len(set(map(tuple, first))) == 5
    assert generate_ids(tiny_denoiser, requests, seed=0, batch_size=2) == first
    assert generate_ids(tiny_denoiser, requests, seed=1, batch_size=5) != first


@pytest.mark.parametrize("algorithm", ["p2", "maskgit_plus", "entropy", "random", "ancestral"])
def test_every_sampler_writes_all_tokens(tiny_denoiser, algorithm):
    request = request_of((5, 6), algorithm=algorithm, max_new_tokens=8, num_steps=4)

    (answer,) = generate_ids(tiny_denoiser, [request], seed=0, batch_size=1)

    assert len(answer) == 8
    assert tiny_denoiser.info.mask_token_id not in answer


def test_a_denoiser_of_uniform_noise_generates(tiny_tokenizer):
    config = qwen2_config(vocab_size=len(tiny_tokenizer))
    config.noise = "uniform"
    denoiser = new_denoiser(config, tiny_tokenizer, seed=0).eval()
    request = request_of((5, 6), algorithm="multinomial", temperature=1.0, num_steps=3)

    assert len(generate_ids(denoiser, [request], seed=0, batch_size=1)[0]) == 6


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ((), "def add(left, right):\n    return left"),
        (("\n",), "def add(left, right):"),
        (("nowhere", "right", "left"), "def add("),
        (("<|bos|>",), "def add(left, right):\n    return left"),
    ],
)
def test_an_answer_ends_at_the_first_stop_text_or_end_token(tiny_tokenizer, until, expected):
    ids = tiny_tokenizer("def add(left, right):\n    return left<|bos|><|endoftext|> more")

    text = read_answer(
        ids["input_ids"], tiny_tokenizer, end_token_ids={tiny_tokenizer.eos_token_id}, until=until
    )

    assert text == expected


def test_special_tokens_are_no_text_and_may_be_where_it_stops(tiny_tokenizer):
    ids = tiny_tokenizer("x<|bos|>y<M>z")["input_ids"]

    assert read_answer(ids, tiny_tokenizer, end_token_ids=(), until=()) == "xyz"
    assert read_answer(ids, tiny_tokenizer, end_token_ids=(), until=("<M>",)) == "xy"


def test_the_ends_of_the_generation_config_count_too(tiny_denoiser, monkeypatch):
    monkeypatch.setattr(tiny_denoiser.model.generation_config, "eos_token_id", [0, 17])

    assert end_token_ids(tiny_denoiser) == {0, 17}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_of(range(5, 256)), "exceed the 256 positions"),
        (request_of(()), "the prompt is empty"),
    ],
)
def test_what_cannot_be_generated_is_refused(tiny_denoiser, request_, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_denoiser, [request_], seed=0, batch_size=1)
