"""Likelihoods against plain float64 loops, one state at a time, and against what is known."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import load_denoiser, new_denoiser
from masked_diffusion.randomness import keyed_uniforms
from student_trainer.tasks.generation import key_of
from student_trainer.tasks.likelihood import (
    Continuation,
    are_greedy,
    log_likelihoods,
    masks_of,
)
from student_trainer.tasks.options import LikelihoodOptions
from tests.fixtures.block_diffusion import FIXTURES
from tests.tiny_models import qwen2_config


@torch.no_grad()
def log_probs(denoiser, xt, x0):
    """[L, V] float64 of a state alone, computed from its hidden states and the head."""
    is_blocked = denoiser.info.attention == "block_causal"
    clean = torch.tensor([x0]) if is_blocked else None
    hidden_LD = denoiser.hidden_states(torch.tensor([xt]), clean_ids_BL=clean)[0].double()
    logits_LV = hidden_LD @ denoiser.head_weight.double().T
    logits_LV = logits_LV[:, : denoiser.info.vocab_size]
    logits_LV[:, denoiser.info.mask_token_id] = -math.inf
    return logits_LV.log_softmax(-1)


def state_log_prob(denoiser, continuation, masked):
    """Log-probability of the masked tokens of one state."""
    start = len(continuation.context_ids)
    x0 = list(continuation.all_ids)
    xt = list(x0)
    for index in masked:
        xt[start + index] = denoiser.info.mask_token_id
    log_probs_LV = log_probs(denoiser, xt, x0)
    return sum(float(log_probs_LV[start + i, x0[start + i]]) for i in masked)


def exact_bound(denoiser, continuation):
    """The expectation over k and over all subsets of k tokens, one after the other."""
    n = len(continuation.ids)
    total = 0.0
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        mean = sum(state_log_prob(denoiser, continuation, s) for s in subsets) / len(subsets)
        total += n / k * mean / n
    return total


def sampled_bound(denoiser, continuation, *, num_masks, seed):
    """The same by draws, as written down in the paper, with the numbers that belong to it."""
    n = len(continuation.ids)
    key = key_of(continuation.context_ids)
    first = keyed_uniforms(seed=seed, sequence_id=key, step=0, length=1, stream="time")[0]
    total = 0.0
    for draw in range(num_masks):
        k = math.ceil((first + draw) / num_masks * n)
        order = keyed_uniforms(seed=seed, sequence_id=key, step=draw, length=n, stream="mask")
        masked = sorted(range(n), key=lambda index: order[index])[:k]
        total += n / k * state_log_prob(denoiser, continuation, masked)
    return total / num_masks


@pytest.fixture(scope="module")
def block_denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdar") / "checkpoint"
    FIXTURES[0].build(folder)
    return load_denoiser(str(folder))


@pytest.fixture(scope="module")
def aligned_denoiser(tiny_tokenizer):
    config = qwen2_config(vocab_size=len(tiny_tokenizer))
    config.logit_alignment = "aligned"
    return new_denoiser(config, tiny_tokenizer, seed=0).eval()


@pytest.fixture(params=["tiny_denoiser", "aligned_denoiser", "block_denoiser"])
def denoiser(request):
    return request.getfixturevalue(request.param)


CONTINUATIONS = [
    Continuation(context_ids=(5, 6, 7), ids=(8, 9, 10, 11)),
    Continuation(context_ids=(5, 6, 7), ids=(20,)),
    Continuation(context_ids=(40, 41, 42, 43, 44, 45, 46), ids=(8, 9)),
    Continuation(context_ids=(5, 6, 7), ids=tuple(range(60, 72))),
    Continuation(context_ids=(9,), ids=tuple(range(30, 40))),
]


def test_short_texts_are_exact_and_long_ones_follow_the_paper(denoiser):
    options = LikelihoodOptions(num_masks=24, seed=3, batch_size=7)

    found = log_likelihoods(denoiser, CONTINUATIONS, options)

    expected = [exact_bound(denoiser, c) for c in CONTINUATIONS[:3]]
    expected += [sampled_bound(denoiser, c, num_masks=24, seed=3) for c in CONTINUATIONS[3:]]
    # float32 forwards of other batches against float64 heads: 1e-6 of tens of nats.
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_score_does_not_depend_on_the_batch_or_on_the_other_texts(denoiser):
    few = LikelihoodOptions(num_masks=15, batch_size=64)
    together = log_likelihoods(denoiser, CONTINUATIONS, few)

    single = replace(few, batch_size=1)
    alone = [log_likelihoods(denoiser, [c], single)[0] for c in CONTINUATIONS]

    assert together == pytest.approx(alone, rel=1e-5)


def test_a_uniform_denoiser_gives_every_text_its_exact_likelihood(tiny_tokenizer):
    config = qwen2_config(vocab_size=len(tiny_tokenizer), tie_word_embeddings=False)
    denoiser = new_denoiser(config, tiny_tokenizer, seed=0).eval()
    denoiser.head_weight.data.zero_()

    found = log_likelihoods(denoiser, CONTINUATIONS, LikelihoodOptions(num_masks=24))

    nats = math.log(denoiser.info.vocab_size - 1)
    assert found == pytest.approx([-len(c.ids) * nats for c in CONTINUATIONS], rel=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 6])
def test_all_masks_of_a_short_text_are_there_once(num_tokens):
    masks = masks_of(num_tokens, num_masks=63, seed=0, key=1)

    assert len(np.unique(masks.masked_RN, axis=0)) == len(masks.masked_RN) == 2**num_tokens - 1
    assert masks.masked_RN.any(axis=1).all()
    # E[n/k * k] = n: what a token costs is counted once on average.
    assert (masks.weights_R * masks.masked_RN.sum(1)).sum() == pytest.approx(num_tokens)
    assert (masks.weights_R @ masks.masked_RN) == pytest.approx(np.ones(num_tokens))


def test_drawn_masks_cover_every_count_and_count_every_token_once_on_average():
    num_tokens, num_masks = 10, 1000
    masks = masks_of(num_tokens, num_masks=num_masks, seed=5, key=9)

    counts_R = masks.masked_RN.sum(1)
    share = [(masks.weights_R * counts_R)[counts_R == k].sum() / num_tokens for k in range(1, 11)]
    # Stratified: every count gets a tenth of the draws but for one at an edge.
    assert share == pytest.approx([0.1] * 10, abs=1 / num_masks + 1e-12)
    # Each token is hit by k of n in each stratum; deviation about sqrt(n / draws).
    assert (masks.weights_R @ masks.masked_RN) == pytest.approx(np.ones(num_tokens), abs=0.3)


def test_equal_masks_are_run_once():
    masks = masks_of(8, num_masks=128, seed=0, key=0)

    assert len(np.unique(masks.masked_RN, axis=0)) == len(masks.masked_RN) < 128


def test_answers_to_one_question_meet_the_same_masks_and_other_seeds_others():
    first = masks_of(20, num_masks=8, seed=0, key=7)

    assert (masks_of(20, num_masks=8, seed=0, key=7).masked_RN == first.masked_RN).all()
    assert (masks_of(20, num_masks=8, seed=1, key=7).masked_RN.shape != first.masked_RN.shape) or (
        masks_of(20, num_masks=8, seed=1, key=7).masked_RN != first.masked_RN
    ).any()


@torch.no_grad()
def greedy_ids(denoiser, context_ids, num_tokens):
    """Fills in the surest of all masked positions, again and again; block by block if there are."""
    ids = [*context_ids, *[denoiser.info.mask_token_id] * num_tokens]
    length = denoiser.info.block_length or len(ids)
    for _ in range(num_tokens):
        masked = [p for p, i in enumerate(ids) if i == denoiser.info.mask_token_id]
        block = [p for p in masked if p // length == masked[0] // length]
        best_V, token_V = log_probs(denoiser, ids, ids).max(-1)
        position = max(block, key=lambda p: float(best_V[p]))
        ids[position] = int(token_V[position])
    return tuple(ids[len(context_ids) :])


def test_what_greedy_sampling_writes_is_greedy_and_nothing_else(denoiser):
    # With blocks of 4 the steps come out even: one token in each.
    contexts = [(5, 6, 7), (40, 41, 42, 43, 44), (9, 8)]
    written = [
        Continuation(context_ids=c, ids=greedy_ids(denoiser, c, n))
        for c, n in zip(contexts, (2, 1, 3), strict=True)
    ]
    other = [Continuation(context_ids=c.context_ids, ids=(*c.ids[:-1], 250)) for c in written]

    assert are_greedy(denoiser, [*written, *other], batch_size=4) == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("continuation", "message"),
    [
        (Continuation(context_ids=(), ids=(5,)), "cannot predict the first position"),
        (Continuation(context_ids=(5,), ids=(5,) * 256), "257 tokens to score"),
        (Continuation(context_ids=(5,), ids=(5, 2)), "holds the mask token"),
    ],
)
def test_what_cannot_be_scored_is_refused(tiny_denoiser, continuation, message):
    assert tiny_denoiser.info.mask_token_id == 2

    with pytest.raises(ValueError, match=message):
        log_likelihoods(tiny_denoiser, [continuation], LikelihoodOptions())


def test_uniform_noise_is_refused(tiny_tokenizer):
    config = qwen2_config(vocab_size=len(tiny_tokenizer))
    config.noise = "uniform"
    denoiser = new_denoiser(config, tiny_tokenizer, seed=0).eval()

    with pytest.raises(ValueError, match="has uniform noise; this bound"):
        log_likelihoods(denoiser, CONTINUATIONS, LikelihoodOptions())
