"""Generative perplexity against one sequence at a time, in float64."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from masked_diffusion.checkpoints import save_denoiser
from student_trainer.evaluation.causal_scorer import CausalScorer
from student_trainer.evaluation.curve_point import perplexity_of
from student_trainer.evaluation.model_spec import parse_model
from student_trainer.evaluation.passages import Passage
from tests.causal_models import save_causal_model
from tests.tiny_models import PYTHON_SOURCES, train_tokenizer

PASSAGES = [
    Passage(text=PYTHON_SOURCES[0]),
    Passage(given=PYTHON_SOURCES[1][:20], text=PYTHON_SOURCES[1][20:]),
    Passage(text=""),
    Passage(text="x = 'naïve <|endoftext|> <M> ☃'\n"),
    Passage(given="def f():", text="\n    return 1\n"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Another tokenizer than the denoisers of the tests have.
    tokenizer = train_tokenizer(PYTHON_SOURCES, vocab_size=280)
    return save_causal_model(tmp_path_factory.mktemp("causal"), tokenizer)


def load(folder):
    return CausalScorer.load(
        parse_model(str(folder)),
        name=f"ar:{folder}",
        device=torch.device("cpu"),
        dtype="auto",
        trust_remote_code=False,
    )


def naive_nats(model, tokenizer, passage, *, start_id):
    """Nats of each judged token, one forward a token, in float64."""
    whole = tokenizer(
        passage.given + passage.text, add_special_tokens=False, split_special_tokens=True
    )
    ids = ([] if start_id is None else [start_id]) + whole["input_ids"]
    num_skipped = 0 if start_id is None else 1
    nats = []
    for place in range(max(1, num_skipped), len(ids)):
        end = whole.token_to_chars(place - num_skipped).end
        if end <= len(passage.given):
            continue
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        nats.append(-float(logits_V.log_softmax(-1)[ids[place]]))
    return nats


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_scores_equal_one_forward_a_token(folder, batch_size):
    scorer = load(folder)
    found = scorer.score(PASSAGES, batch_size=batch_size)

    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    wanted = [
        naive_nats(model, tokenizer, passage, start_id=tokenizer.bos_token_id)
        for passage in PASSAGES
    ]
    np.testing.assert_allclose(found.nats, [math.fsum(nats) for nats in wanted], rtol=1e-5)
    assert found.num_tokens.tolist() == [len(nats) for nats in wanted]
    assert found.num_tokens[2] == 0
    assert found.num_bytes.tolist() == [len(p.text.encode()) for p in PASSAGES]

    summary = perplexity_of(found, scorer)
    everything = [nat for nats in wanted for nat in nats]
    assert summary.perplexity == pytest.approx(math.exp(np.mean(everything)), rel=1e-5)
    num_bytes = sum(len(p.text.encode()) for p in PASSAGES)
    assert summary.bits_per_byte == pytest.approx(
        math.fsum(everything) / math.log(2) / num_bytes, rel=1e-5
    )


def test_without_a_start_token_the_first_token_is_neither_judged_nor_counted(folder):
    scorer = load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    bare = PreTrainedTokenizerFast(tokenizer_object=scorer._tokenizer.backend_tokenizer)
    found = CausalScorer(model, bare, name="bare").score(PASSAGES[:2], batch_size=2)

    double = model.double()
    wanted = [naive_nats(double, bare, passage, start_id=None) for passage in PASSAGES[:2]]
    np.testing.assert_allclose(found.nats, [math.fsum(nats) for nats in wanted], rtol=1e-5)
    assert found.num_tokens.tolist() == [len(nats) for nats in wanted]
    first = bare.decode(bare(PASSAGES[0].text)["input_ids"][:1])
    assert found.num_bytes[0] == len(PASSAGES[0].text.encode()) - len(str(first).encode())
    assert found.num_bytes[1] == len(PASSAGES[1].text.encode())


def test_a_model_that_sees_what_it_has_to_predict_is_refused(tiny_denoiser, tmp_path):
    # As saved, its config says is_causal = false, which transformers' own class honours.
    save_denoiser(tiny_denoiser, tmp_path / "denoiser")
    with pytest.raises(ValueError, match="attends to later tokens"):
        load(tmp_path / "denoiser")


def test_a_text_longer_than_the_scorer_is_refused(folder):
    with pytest.raises(ValueError, match=r"takes at most 128; lower --gen_length"):
        load(folder).score([Passage(text="a b c " * 100)], batch_size=1)


def test_what_is_no_causal_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load scorer"):
        load(tmp_path)
