"""Likelihood and divergence against plain float64 loops over full logits."""

import itertools
import math

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from student_trainer import evaluate
from student_trainer.data import Chunking, tokenize_documents
from student_trainer.documents import Document
from student_trainer.evaluate import kl_to_teacher, nelbo
from student_trainer.evaluation_states import held_out_states
from tests.tiny_models import PYTHON_SOURCES, qwen2_config


def dataset_of(texts, tokenizer):
    documents = [Document(text=text, source="test") for text in texts]
    return tokenize_documents(
        documents, tokenizer, chunking=Chunking(max_seq_len=32, min_chunk_tokens=2)
    )


@pytest.fixture(scope="module")
def states(tiny_tokenizer, tiny_denoiser):
    texts = [f"{source}value = {index}\n" for index in range(4) for source in PYTHON_SOURCES]
    return held_out_states(
        dataset_of(texts, tiny_tokenizer),
        denoiser_info=tiny_denoiser.info,
        num_sequences=20,
        seed=7,
        masks_per_sequence=2,
    )


@pytest.fixture(scope="module")
def student(tiny_tokenizer, tiny_denoiser):
    config = qwen2_config(vocab_size=tiny_denoiser.info.padded_vocab_size, hidden_size=16)
    return new_denoiser(config, tiny_tokenizer, seed=5).eval()


@torch.no_grad()
def naive_log_probs(denoiser, xt_L):
    """Distribution at every position of one row that is alone and not padded, [L, V] float64."""
    hidden_LD = denoiser.hidden_states(xt_L[None])[0].double()
    logits_LV = hidden_LD @ denoiser.head_weight.double().T
    logits_LV = logits_LV[:, : denoiser.info.vocab_size]
    logits_LV[:, denoiser.info.mask_token_id] = -torch.inf
    return logits_LV.log_softmax(dim=-1)


def rows_of(states):
    for row, length in enumerate(states.lengths_B.tolist()):
        yield (
            row,
            states.x0_BL[row, :length],
            states.xt_BL[row, :length],
            states.masked_BL[row, :length],
        )


@pytest.mark.parametrize(("batch_size", "chunk_elements"), [(40, 10**7), (7, 2000)])
def test_nelbo_equals_a_plain_loop(tiny_denoiser, states, monkeypatch, batch_size, chunk_elements):
    monkeypatch.setattr(evaluate, "MAX_CHUNK_ELEMENTS", chunk_elements)

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


def test_kl_equals_a_plain_loop_in_every_bin(tiny_denoiser, student, states, monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_CHUNK_ELEMENTS", 5000)

    found = kl_to_teacher(tiny_denoiser, student, states, batch_size=7, num_bins=4)

    values: dict[int, list[tuple[float, float]]] = {index: [] for index in range(4)}
    for row, _, xt_L, masked_L in rows_of(states):
        teacher_LV = naive_log_probs(tiny_denoiser, xt_L)
        student_LV = naive_log_probs(student, xt_L)
        index = math.ceil(float(states.t_B[row]) * 4) - 1
        for p in masked_L.nonzero()[:, 0]:
            both = torch.isfinite(teacher_LV[p])
            terms = teacher_LV[p].exp() * (teacher_LV[p] - student_LV[p])
            agrees = teacher_LV[p].argmax() == student_LV[p].argmax()
            values[index].append((float(terms[both].sum()), float(agrees)))
    assert all(values.values())
    everything = [value for bin_values in values.values() for value in bin_values]
    for kl_bin, wanted in zip(
        [*found.bins, found.overall], [*values.values(), everything], strict=True
    ):
        assert kl_bin.num_positions == len(wanted)
        assert kl_bin.kl_nats == pytest.approx(np.mean([kl for kl, _ in wanted]), rel=1e-5)
        assert kl_bin.top1_agreement == pytest.approx(np.mean([agrees for _, agrees in wanted]))
    assert [(b.t_low, b.t_high) for b in found.bins] == [(i / 4, (i + 1) / 4) for i in range(4)]


def test_a_teacher_agrees_with_itself(tiny_denoiser, states):
    found = kl_to_teacher(tiny_denoiser, tiny_denoiser, states, batch_size=16)
    assert (found.overall.kl_nats, found.overall.top1_agreement) == (0, 1)


def test_bins_without_a_state_are_left_out(tiny_denoiser, student, states):
    found = kl_to_teacher(tiny_denoiser, student, states, batch_size=40, num_bins=1000)
    assert len(found.bins) <= len(states.t_B)
    assert all(kl_bin.num_positions > 0 for kl_bin in found.bins)


def test_another_tokenizer_is_refused(tiny_denoiser, states):
    info = tiny_denoiser.info
    config = qwen2_config(vocab_size=info.vocab_size)
    student = new_denoiser(config, None, seed=0, mask_token_id=info.mask_token_id)
    with pytest.raises(ValueError, match="differ in tokenizer_fingerprint"):
        kl_to_teacher(tiny_denoiser, student, states, batch_size=4)
