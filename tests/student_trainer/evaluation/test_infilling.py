"""Spans and exact match against a plain loop."""

import argparse
import inspect

import pytest
import torch

from masked_diffusion.samplers import SamplerConfig
from student_trainer.evaluation.infilling import draw_spans, infill_spans
from student_trainer.evaluation.intervals import wilson_interval
from tests.held_out import dataset_of, naive_log_probs
from tests.tiny_models import PYTHON_SOURCES


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer):
    return dataset_of([f"{s}y = {i}\n" for i in range(4) for s in PYTHON_SOURCES], tiny_tokenizer)


@pytest.mark.parametrize("length", [1, 3, 8])
def test_spans_are_neighbours_that_may_all_be_masked(dataset, tiny_denoiser, length):
    info = tiny_denoiser.info
    spans = draw_spans(dataset, info=info, length=length, num_spans=12, seed=1)
    special = torch.tensor(info.special_token_ids)
    for row in range(12):
        places = spans.span_BL[row].nonzero()[:, 0]
        assert len(places) == length
        assert int(places[-1] - places[0]) == length - 1
        assert places[-1] < spans.batch.lengths_B[row]
        assert not torch.isin(spans.batch.input_ids_BL[row, places], special).any()
    again = draw_spans(dataset, info=info, length=length, num_spans=12, seed=1)
    torch.testing.assert_close(again.span_BL, spans.span_BL)
    other = draw_spans(dataset, info=info, length=length, num_spans=12, seed=2)
    assert not torch.equal(other.batch.input_ids_BL, spans.batch.input_ids_BL)


def test_exact_match_equals_a_plain_loop_of_one_step(trained_aligned):
    # What it was trained on: there some spans come back.
    dataset = dataset_of([inspect.getsource(argparse)], trained_aligned.tokenizer)
    info = trained_aligned.info
    spans = draw_spans(dataset, info=info, length=2, num_spans=24, seed=1)
    config = SamplerConfig(algorithm="entropy", num_steps=1)

    found = infill_spans(trained_aligned, spans, config=config, seed=0, batch_size=7)

    exact, right = 0, 0
    for row, length in enumerate(spans.batch.lengths_B.tolist()):
        x0_L, span_L = spans.batch.input_ids_BL[row, :length], spans.span_BL[row, :length]
        xt_L = x0_L.masked_fill(span_L, info.mask_token_id)
        hits = naive_log_probs(trained_aligned, xt_L).argmax(-1)[span_L] == x0_L[span_L]
        exact += bool(hits.all())
        right += int(hits.sum())
    assert 0 < exact < 24
    assert (found.num_exact, found.num_spans, found.exact_match) == (exact, 24, exact / 24)
    assert found.token_accuracy == right / 48
    low, high = wilson_interval(exact, 24)
    assert (found.exact_match_low, found.exact_match_high) == (low, high)
    assert found.num_forwards == 1


def test_spans_longer_than_the_text_are_refused(dataset, tiny_denoiser):
    with pytest.raises(ValueError, match="span of 90 tokens: lower --num_infills"):
        draw_spans(dataset, info=tiny_denoiser.info, length=90, num_spans=2, seed=0)
