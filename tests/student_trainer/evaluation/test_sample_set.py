"""Sample sets: what counts as written, and as its text."""

import math

import pytest
import torch

from student_trainer.evaluation.sample_set import diversity, sample_set


def set_of(rows, given, tokenizer, info, **options):
    return sample_set(
        torch.tensor(rows),
        num_given_B=torch.tensor(given),
        info=info,
        tokenizer=tokenizer,
        keep_after_eos=options.get("keep_after_eos", False),
    )


def test_a_sample_ends_at_its_first_end_and_leaves_out_what_was_given(
    tiny_tokenizer, tiny_denoiser
):
    bos, eos = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    a, b, c = tiny_tokenizer("for index in")["input_ids"][:3]
    rows = [[bos, a, b, c, eos, a], [bos, a, eos, a, b, c], [bos, eos, a, b, c, a]]
    given = [2, 3, 1]

    found = set_of(rows, given, tiny_tokenizer, tiny_denoiser.info)
    assert found.token_ids == [[b, c], [a, b, c], []]
    decode = tiny_tokenizer.decode
    assert [p.given for p in found.passages] == [decode([a]), decode([a]), ""]
    assert [p.text for p in found.passages] == [decode([b, c]), decode([a, b, c]), ""]

    whole = set_of(rows, given, tiny_tokenizer, tiny_denoiser.info, keep_after_eos=True)
    assert whole.token_ids[0] == [b, c, eos, a]
    assert whole.passages[0].text == decode([b, c, a]), "special tokens are no text"


def test_diversity_counts_each_sample_once(tiny_tokenizer, tiny_denoiser):
    bos, eos = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    rows = [[bos, 10, 10, 11, 11], [bos, 10, 10, 11, 11], [bos, 12, 12, 12, 12], [bos] + [eos] * 4]
    found = diversity(set_of(rows, [1] * 4, tiny_tokenizer, tiny_denoiser.info))

    assert found.entropy_nats == pytest.approx(2 * math.log(2) / 4)
    spread = math.log(2) / math.sqrt(3)  # of (log 2, log 2, 0, 0), with n - 1
    assert found.entropy_ci95 == pytest.approx(3.182 * spread / math.sqrt(4))
    assert found.distinct == {1: 3 / 12, 2: 4 / 9, 3: 3 / 6}
    assert (found.different_fraction, found.mean_tokens, found.num_empty) == (0.75, 3.0, 1)


def test_a_character_across_the_border_does_not_spoil_the_text(tiny_tokenizer, tiny_denoiser):
    snowman = tiny_tokenizer("☃")["input_ids"]
    assert len(snowman) > 1
    rows = [[*snowman, *tiny_tokenizer("ab")["input_ids"]]] * 2
    found = set_of(rows, [1, 1], tiny_tokenizer, tiny_denoiser.info)
    assert found.passages[0].text.endswith("ab")
