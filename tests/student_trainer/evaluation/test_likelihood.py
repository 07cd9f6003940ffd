"""Likelihood against plain float64 loops over full logits."""

import itertools
import math

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from student_trainer.evaluation import forwards
from student_trainer.evaluation.likelihood import nelbo
from student_trainer.evaluation.states import held_out_states
from tests.held_out import dataset_of, naive_log_probs, rows_of
from tests.tiny_models import qwen2_config


@pytest.mark.parametrize(("batch_size", "chunk_elements"), [(40, 10**7), (7, 2000)])
def test_nelbo_equals_a_plain_loop(tiny_denoiser, states, monkeypatch, batch_size, chunk_elements):
    monkeypatch.setattr(forwards, "MAX_CHUNK_ELEMENTS", chunk_elements)

    found = nelbo(tiny_denoiser, states, batch_size=batch_size)

    wanted = np.zeros(states.num_sequences)
    for row, x0_L, xt_L, masked_L in rows_of(states):
        log_probs_LV = naive_log_probs(tiny_denoiser, xt_L)
        num_maskable = masked_L.sum() / states.t_B[row]
        total = sum(-log_probs_LV[p, x0_L[p]] for p in masked_L.nonzero()[:, 0])
        wanted[states.sequences_B[row]] += float(total / states.t_B[row] / num_maskable) / 2
    np.testing.assert_allclose(found.per_sequence, wanted, rtol=1e-5)  # float32 logits
    assert found.mean == pytest.approx(wanted.mean(), rel=1e-5)
    assert found.ci95 == pytest.approx(2.093 * wanted.std(ddof=1) / math.sqrt(20), rel=1e-4)


def test_a_uniform_model_spends_log_of_the_vocabulary_without_the_mask(tiny_tokenizer, states):
    vocab_size = len(tiny_tokenizer)
    uniform = new_denoiser(qwen2_config(vocab_size=vocab_size + 20), tiny_tokenizer, seed=0)
    with torch.no_grad():
        uniform.head_weight.zero_()

    found = nelbo(uniform, states, batch_size=16)

    np.testing.assert_allclose(found.per_sequence, math.log(vocab_size - 1), rtol=1e-6)
    assert uniform.training, "the mode is given back as it was"


def test_nelbo_is_unbiased_for_the_integral_over_time(tiny_tokenizer, tiny_denoiser):
    dataset = dataset_of(["a = b\n", "x + y"], tiny_tokenizer)
    info = tiny_denoiser.info
    states = held_out_states(
        dataset, denoiser_info=info, num_sequences=2, seed=0, masks_per_sequence=1000
    )

    found = nelbo(tiny_denoiser, states, batch_size=500)

    for sequence in range(2):
        x0_L = states.x0_BL[1000 * sequence, : states.lengths_B[1000 * sequence]]
        maskable = [p for p, i in enumerate(x0_L.tolist()) if i not in info.special_token_ids]
        n, exact = len(maskable), 0.0
        assert 2 <= n <= 8
        for k in range(1, n + 1):
            # Integral over t of (1/t) t^k (1-t)^(n-k).
            weight = math.factorial(k - 1) * math.factorial(n - k) / math.factorial(n)
            for subset in map(list, itertools.combinations(maskable, k)):
                log_probs_LV = naive_log_probs(
                    tiny_denoiser, x0_L.index_fill(0, torch.tensor(subset), info.mask_token_id)
                )
                exact -= weight * float(log_probs_LV[subset, x0_L[subset]].sum()) / n
        # 1000 masks, a spread of below 1 nat between them: five standard errors.
        assert found.per_sequence[sequence] == pytest.approx(exact, abs=0.15)
