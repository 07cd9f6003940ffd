"""Divergence from the teacher against plain float64 loops over full logits."""

import math

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from student_trainer.evaluation import forwards
from student_trainer.evaluation.agreement import kl_to_teacher
from student_trainer.evaluation.intervals import T_QUANTILES
from tests.held_out import naive_log_probs, rows_of
from tests.tiny_models import qwen2_config


def test_kl_equals_a_plain_loop_in_every_bin(tiny_denoiser, student, states, monkeypatch):
    monkeypatch.setattr(forwards, "MAX_CHUNK_ELEMENTS", 5000)

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


def test_intervals_are_over_sequences(tiny_denoiser, student, states):
    found = kl_to_teacher(tiny_denoiser, student, states, batch_size=16, num_bins=2)

    for index, kl_bin in enumerate(found.bins):
        sums: dict[int, list[float]] = {}
        for row, _, xt_L, masked_L in rows_of(states):
            if math.ceil(float(states.t_B[row]) * 2) - 1 != index:
                continue
            teacher_LV, student_LV = (naive_log_probs(m, xt_L) for m in (tiny_denoiser, student))
            kept = teacher_LV.isfinite()
            kl_L = (teacher_LV.exp() * (teacher_LV - student_LV)).where(kept, 0).sum(-1)
            entry = sums.setdefault(int(states.sequences_B[row]), [0.0, 0.0])
            entry[0] += float(kl_L[masked_L].sum())
            entry[1] += float(masked_L.sum())
        tops, bottoms = np.array(list(sums.values())).T
        residuals = (tops - tops.sum() / bottoms.sum() * bottoms) / bottoms.mean()
        count = len(tops)
        standard_error = math.sqrt((residuals**2).sum() / (count - 1) / count)
        assert kl_bin.num_sequences == count
        assert kl_bin.kl_ci95 is not None
        assert kl_bin.top1_ci95 is not None
        # Student's t for this many sequences; the table has three decimals.
        assert kl_bin.kl_ci95 / standard_error == pytest.approx(T_QUANTILES[count - 2], rel=1e-4)
        assert kl_bin.top1_ci95 > 0


def test_a_bin_of_one_sequence_has_no_interval(tiny_denoiser, student, states):
    found = kl_to_teacher(tiny_denoiser, student, states, batch_size=40, num_bins=1000)
    lonely = [kl_bin for kl_bin in found.bins if kl_bin.num_sequences == 1]
    assert lonely
    assert all(kl_bin.kl_ci95 is None and kl_bin.top1_ci95 is None for kl_bin in lonely)
