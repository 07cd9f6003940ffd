"""A denoiser's bound on texts against plain float64 sums."""

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from masked_diffusion.families.mdlm_config import MdlmConfig
from student_trainer.evaluation.masked_scorer import MaskedScorer
from student_trainer.evaluation.passages import Passage
from tests.held_out import naive_log_probs
from tests.tiny_models import PYTHON_SOURCES

PASSAGES = [
    Passage(text=PYTHON_SOURCES[0]),
    Passage(given=PYTHON_SOURCES[1][:20], text=PYTHON_SOURCES[1][20:]),
    Passage(text=""),
]


def scorer_of(denoiser, masks=3):
    return MaskedScorer(denoiser, name="masked:x", seed=5, masks_per_passage=masks)


def test_a_single_token_costs_what_the_denoiser_says(tiny_denoiser, tiny_tokenizer):
    found = scorer_of(tiny_denoiser).score([Passage(given="for ", text="i")], batch_size=4)

    (*given, last) = tiny_tokenizer("for i")["input_ids"]
    xt_L = torch.tensor([tiny_tokenizer.bos_token_id, *given, tiny_denoiser.info.mask_token_id])
    assert found.nats[0] == pytest.approx(-float(naive_log_probs(tiny_denoiser, xt_L)[-1, last]))
    assert (found.num_tokens[0], found.num_bytes[0]) == (1, 1)


def test_the_bound_is_the_mean_over_masks_times_the_tokens(tiny_denoiser, tiny_tokenizer):
    found = scorer_of(tiny_denoiser).score(PASSAGES, batch_size=2)

    counts = [
        len(tiny_tokenizer(p.given + p.text)["input_ids"])
        - len(tiny_tokenizer(p.given)["input_ids"])
        for p in PASSAGES
    ]
    assert found.num_tokens.tolist() == counts
    assert found.num_bytes.tolist() == [len(p.text) for p in PASSAGES]
    assert found.nats[2] == 0
    # A random model is not far from the uniform one.
    per_token = found.nats[:2] / counts[:2]
    assert (abs(per_token - np.log(tiny_denoiser.info.vocab_size - 1)) < 1.5).all()


def test_scores_do_not_depend_on_the_batch(tiny_denoiser):
    one, two = (scorer_of(tiny_denoiser).score(PASSAGES, batch_size=size) for size in (1, 9))
    np.testing.assert_allclose(one.nats, two.nats, rtol=1e-5)


def test_uniform_noise_is_refused(tiny_tokenizer):
    config = MdlmConfig(
        vocab_size=len(tiny_tokenizer), hidden_dim=4, n_heads=1, n_blocks=1,
        mask_token_id=tiny_tokenizer.mask_token_id,
    )  # fmt: skip
    config.noise = "uniform"
    denoiser = new_denoiser(config, tiny_tokenizer, seed=0)
    with pytest.raises(ValueError, match="has uniform noise"):
        scorer_of(denoiser)


def test_a_text_longer_than_the_scorer_is_refused(tiny_denoiser):
    with pytest.raises(ValueError, match="takes at most 256"):
        scorer_of(tiny_denoiser).score([Passage(text="a b " * 200)], batch_size=1)
