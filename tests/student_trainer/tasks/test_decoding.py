"""What a user says and what a task asks for, put together."""

import pytest

from masked_diffusion.checkpoints import new_denoiser
from student_trainer.tasks.decoding import decoding_of, read_task_request
from student_trainer.tasks.options import GenerationOptions
from tests.tiny_models import qwen2_config


def decode(info, asked, **options):
    return decoding_of(GenerationOptions(**options), read_task_request(asked), info)


@pytest.fixture(scope="module")
def info(tiny_denoiser):
    return tiny_denoiser.info


def test_without_a_word_256_tokens_are_taken_one_a_step(info):
    decoding = decode(info, {})

    assert (decoding.max_new_tokens, decoding.sampler.num_steps) == (256, 256)
    assert (decoding.sampler.algorithm, decoding.sampler.temperature) == ("low_confidence", 0.0)
    assert decoding.until == ()


def test_a_task_is_heard(info):
    asked = {"until": ["\n\n", ""], "max_gen_toks": "32", "do_sample": True, "temperature": 0.8}

    decoding = decode(info, {**asked, "top_p": 0.9, "top_k": 5, "num_beams": 1})

    assert (decoding.max_new_tokens, decoding.sampler.num_steps) == (32, 32)
    assert decoding.until == ("\n\n",)
    sampler = decoding.sampler
    assert (sampler.temperature, sampler.top_p, sampler.top_k) == (0.8, 0.9, 5)


def test_a_task_that_does_not_sample_has_no_temperature(info):
    assert decode(info, {"do_sample": False, "temperature": 0.8}).sampler.temperature == 0.0


def test_the_user_has_the_last_word(info):
    asked = {"max_gen_toks": 1024, "do_sample": False, "until": "stop"}

    decoding = decode(info, asked, max_new_tokens=64, num_steps=16, temperature=0.5, top_k=9)

    assert (decoding.max_new_tokens, decoding.sampler.num_steps) == (64, 16)
    assert (decoding.sampler.temperature, decoding.sampler.top_k) == (0.5, 9)
    assert decoding.until == ("stop",)


def test_uniform_noise_has_a_sampler_of_its_own(tiny_tokenizer):
    config = qwen2_config(vocab_size=len(tiny_tokenizer))
    config.noise = "uniform"
    info = new_denoiser(config, tiny_tokenizer, seed=0).info

    assert decode(info, {}).sampler.algorithm == "multinomial"
    with pytest.raises(ValueError, match="algorithm must be one of multinomial"):
        decode(info, {}, algorithm="p2")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 in generation_kwargs"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"until": 3}, "until"),
        ({"max_gen_toks": "many"}, "max_new_tokens='many'"),
    ],
)
def test_a_task_that_asks_for_something_else_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        read_task_request(asked)
