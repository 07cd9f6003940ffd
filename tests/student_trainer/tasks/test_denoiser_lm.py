"""The model `dllm` of lm-eval, asked directly, through our command and through lm-eval's own."""

import functools
import importlib.metadata
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from student_trainer.tasks.denoiser_lm import DenoiserLM
from student_trainer.tasks.harness import (
    HarnessOptions,
    UnsafeTaskError,
    prepare_harness_tasks,
    run_harness_tasks,
)
from student_trainer.tasks.model_args import read_model_args
from tests.student_trainer.tasks import lm_eval_tasks
from tests.student_trainer.tasks.lm_eval_tasks import CHOICE_ROWS, MAX_GEN_TOKS, WRITE_ROWS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return lm_eval_tasks.write(tmp_path_factory.mktemp("lm_eval"))


def lm_of(denoiser, **model_args):
    return DenoiserLM.of(denoiser, read_model_args({"pretrained": "-", **model_args}))


@pytest.fixture(scope="module")
def lm(tiny_denoiser):
    return lm_of(tiny_denoiser)


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]


@torch.no_grad()
def log_probs(denoiser, ids):
    """[L, V] float64, of one state alone."""
    hidden_LD = denoiser.hidden_states(torch.tensor([ids]))[0].double()
    logits_LV = hidden_LD @ denoiser.head_weight.double().T
    logits_LV[:, denoiser.info.vocab_size :] = -math.inf
    logits_LV[:, denoiser.info.mask_token_id] = -math.inf
    return logits_LV.log_softmax(-1)


def naive_log_likelihood(denoiser, context, text):
    """The bound over all masks of a short text, in float64: none of our code but the forward."""
    tokenizer, mask = denoiser.tokenizer, denoiser.info.mask_token_id
    whole, start = tokenizer(context + text)["input_ids"], len(tokenizer(context)["input_ids"])
    scored = range(start, len(whole))
    total = 0.0
    for k in range(1, len(scored) + 1):
        for masked in itertools.combinations(scored, k):
            state = [mask if p in masked else i for p, i in enumerate(whole)]
            log_probs_LV = log_probs(denoiser, state)
            value = sum(float(log_probs_LV[p, whole[p]]) for p in masked)
            total += value / (k * math.comb(len(scored), k))
    return total


def naive_answer(denoiser, context):
    """Greedy, the surest position first, one a step."""
    ids = [*denoiser.tokenizer(context)["input_ids"]]
    start, mask = len(ids), denoiser.info.mask_token_id
    ids += [mask] * MAX_GEN_TOKS
    for _ in range(MAX_GEN_TOKS):
        best_L, token_L = log_probs(denoiser, ids).max(-1)
        position = max((p for p, i in enumerate(ids) if i == mask), key=lambda p: float(best_L[p]))
        ids[position] = int(token_L[position])
    written = ids[start:]
    if denoiser.info.eos_token_id in written:
        written = written[: written.index(denoiser.info.eos_token_id)]
    text = denoiser.tokenizer.decode(written).split("\n\n")[0]
    return text.replace("<|bos|>", "").replace("<M>", "")


@functools.cache
def naive_choices(denoiser):
    return [
        [naive_log_likelihood(denoiser, row["question"], text) for text in row["choices"]]
        for row in CHOICE_ROWS
    ]


def naive_accuracy(denoiser):
    scores = naive_choices(denoiser)
    chosen = [row.index(max(row)) for row in scores]
    right = [c == row["answer"] for c, row in zip(chosen, CHOICE_ROWS, strict=True)]
    return sum(right) / len(right)


def test_lm_eval_knows_the_model_by_its_name():
    assert get_model("dllm") is DenoiserLM


def test_the_entry_point_leads_to_the_model():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    value = text.split('[project.entry-points."lm_eval.models"]')[1].split('dllm = "')[1]
    point = importlib.metadata.EntryPoint("dllm", value.split('"')[0], "lm_eval.models")

    assert point.load() is DenoiserLM


def test_choices_are_scored_as_in_float64(lm, tiny_denoiser):
    pairs = [(row["question"], text) for row in CHOICE_ROWS for text in row["choices"]]

    found = lm.loglikelihood(instances("loglikelihood", *pairs))

    expected = [score for row in naive_choices(tiny_denoiser) for score in row]
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-5)


def test_answers_are_those_of_greedy_sampling_in_float64(lm, tiny_denoiser):
    asked = {"until": ["\n\n"], "max_gen_toks": MAX_GEN_TOKS}
    requests = [(row["question"], asked) for row in WRITE_ROWS]

    found = lm.generate_until(instances("generate_until", *requests))

    assert found == [naive_answer(tiny_denoiser, row["question"]) for row in WRITE_ROWS]


def test_a_text_without_context_stands_after_the_token_that_begins_texts(lm, tiny_denoiser):
    ((score, _),) = lm.loglikelihood(instances("loglikelihood", ("", "import")))
    (rolling,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("import",)))

    assert score == rolling
    assert score == pytest.approx(naive_log_likelihood(tiny_denoiser, "<|bos|>", "import"))


def test_nothing_is_certain(lm):
    assert lm.loglikelihood(instances("loglikelihood", ("x", ""))) == [(0.0, True)]


def test_a_long_text_is_scored_in_pieces_each_after_the_token_before_it(tiny_denoiser):
    text = "def add(left, right):\n    return left + right\n"
    lm = lm_of(tiny_denoiser, max_length=5, mc_num=15)
    ids = [tiny_denoiser.info.bos_token_id, *tiny_denoiser.tokenizer(text)["input_ids"]]
    pieces = [(ids[start], ids[start + 1 : start + 5]) for start in range(0, len(ids) - 1, 4)]
    assert len(pieces) > 2

    (found,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))

    decode = tiny_denoiser.tokenizer.decode
    expected = [
        naive_log_likelihood(tiny_denoiser, decode([before]), decode(piece))
        for before, piece in pieces
    ]
    assert found == pytest.approx(sum(expected), rel=1e-5)


def test_a_context_that_is_too_long_loses_its_beginning(tiny_denoiser, lm):
    short = lm_of(tiny_denoiser, max_length=10)
    context = "class Point: def x(self): return self.x"
    tokenizer = tiny_denoiser.tokenizer
    (request,) = instances("generate_until", (context, {"max_gen_toks": 6}))
    kept = tokenizer.decode(tokenizer(context)["input_ids"][-4:])
    assert tokenizer(kept)["input_ids"] == tokenizer(context)["input_ids"][-4:]

    cut = short.generate_until([request])

    assert cut == lm.generate_until(instances("generate_until", (kept, {"max_gen_toks": 6})))
    with pytest.raises(ValueError, match="max_new_tokens must be below 10"):
        short.generate_until(instances("generate_until", (context, {"max_gen_toks": 10})))


def test_chats_are_written_by_the_template_and_begun_once(tiny_denoiser, monkeypatch):
    monkeypatch.setattr(
        tiny_denoiser.tokenizer,
        "chat_template",
        "<|bos|>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    )
    lm = lm_of(tiny_denoiser, add_bos_token=True)
    question = {"role": "user", "content": "add"}

    chat = lm.apply_chat_template([question])

    assert chat == "<|bos|>[user]add[assistant]"
    assert lm.tok_encode(chat).count(tiny_denoiser.info.bos_token_id) == 1
    assert lm.tok_encode("add")[0] == tiny_denoiser.info.bos_token_id
    assert "/" not in lm.tokenizer_name
    answer = {"role": "assistant", "content": "Here:"}
    begun = lm.apply_chat_template([question, answer], add_generation_prompt=False)
    assert begun == "<|bos|>[user]add[assistant]Here:"


def test_a_chat_without_a_template_is_refused(lm):
    with pytest.raises(ValueError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "add"}])


def test_tasks_of_ones_own_run_offline(tiny_denoiser, tasks):
    options = HarnessOptions(include_path=str(tasks))
    prepared = prepare_harness_tasks(["our_choice", "our_writing"], options)

    result = run_harness_tasks(
        tiny_denoiser, prepared, lm_options=read_model_args({"pretrained": "-"})
    )

    scores = {(score.task, score.metric): score for score in result.scores}
    assert scores["our_choice", "acc"].value == naive_accuracy(tiny_denoiser)
    assert scores["our_choice", "acc"].num_questions == len(CHOICE_ROWS)
    assert scores["our_writing", "exact_match"].value == 0.0
    assert prepared.scoring == ["our_choice"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["our_unsafe"], UnsafeTaskError, "runs the model's programs inside this process"),
        (["our_choice", "our_unsafe"], UnsafeTaskError, "'our_unsafe'"),
    ],
)
def test_tasks_that_run_programs_in_this_process_are_refused(tasks, names, error, message):
    options = HarnessOptions(include_path=str(tasks))

    with pytest.raises(error, match=message):
        prepare_harness_tasks(names, options)


# lm-eval reads its 14 000 YAML files before anything else, 15 s; none of them is asked for here.
OWN_TASKS_ALONE = """
import functools, runpy, lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("student_trainer.tasks.lm_eval_cli", run_name="__main__")
"""


@pytest.mark.slow
def test_lm_evals_own_command_gives_the_same(tiny_checkpoint, tiny_denoiser, tasks, tmp_path):
    arguments = (
        *("-c", OWN_TASKS_ALONE),
        *("run", "--model", "dllm", "--model_args", f"pretrained={tiny_checkpoint},mc_num=127"),
        *("--tasks", "our_choice,our_writing", "--include_path", tasks, "--batch_size", "3"),
        *("--output_path", tmp_path / "out", "--log_samples", "--device", "cpu"),
    )
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["results"]["our_choice"]["acc,none"] == naive_accuracy(tiny_denoiser)
    assert found["config"]["options"]["generation"]["batch_size"] == 3
    (choices,) = (tmp_path / "out").rglob("samples_our_choice_*.jsonl")
    rows = [json.loads(line) for line in choices.read_text(encoding="utf-8").splitlines()]
    scores = [float(resp[0][0]) for row in rows for resp in row["resps"]]
    expected = [score for row in naive_choices(tiny_denoiser) for score in row]
    assert scores == pytest.approx(expected, rel=1e-5)
    (writing,) = (tmp_path / "out").rglob("samples_our_writing_*.jsonl")
    rows = [json.loads(line) for line in writing.read_text(encoding="utf-8").splitlines()]
    assert [row["resps"][0][0] for row in rows] == [
        naive_answer(tiny_denoiser, row["question"]) for row in WRITE_ROWS
    ]
