"""Flat arguments of a model become typed options."""

import pytest

from student_trainer.tasks.model_args import read_model_args


def test_a_path_is_enough():
    options = read_model_args({"pretrained": "here"})

    assert options.model.model == "here"
    assert options.likelihood.num_masks == 128
    assert options.generation.batch_size == 8


def test_names_in_use_elsewhere_are_ours_too_and_texts_become_values():
    options = read_model_args(
        {
            "pretrained": "here",
            "steps": "64",
            "alg": "p2",
            "gen_length": 128,
            "cfg": 0.5,
            "mc_num": "16",
            "is_check_greedy": "false",
            "temperature": "0.2",
            "peft": "one+two",
            "denoiser_block_length": "4",
            "add_bos_token": True,
        }
    )

    generation, likelihood = options.generation, options.likelihood
    assert (generation.num_steps, generation.algorithm, generation.max_new_tokens) == (
        64,
        "p2",
        128,
    )
    assert (generation.guidance_scale, generation.temperature) == (0.5, 0.2)
    assert (likelihood.num_masks, likelihood.check_greedy) == (16, False)
    assert options.model.adapters == ("one", "two")
    assert options.model.denoiser_block_length == 4
    assert options.add_bos_token is True


def test_seed_and_batch_size_are_those_of_both():
    options = read_model_args(
        {"pretrained": "here", "seed": 5, "batch_size": "3", "max_batch_size": 64}
    )

    assert (options.generation.seed, options.likelihood.seed) == (5, 5)
    assert (options.generation.batch_size, options.likelihood.batch_size) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained is missing"),
        ({"pretrained": "x", "stepps": 3}, "unknown model argument 'stepps'; did you mean steps?"),
        ({"pretrained": "x", "steps": "few"}, "num_steps: .*got 'few'"),
        ({"pretrained": "x", "mc_num": 0}, "num_masks must be at least 1"),
        ({"pretrained": "x", "batch_size": "auto:4"}, "batch_size must be a number"),
        ({"pretrained": "x", "alignment": "crooked"}, "alignment"),
        ({"pretrained": "x", "max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_model_args(arguments)
