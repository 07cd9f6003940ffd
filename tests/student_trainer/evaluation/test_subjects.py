"""Held-out rows in the ids of a model: texts, prompts with answers, and conversations."""

import copy
import json

import datasets
import pytest

from masked_diffusion.checkpoints import new_denoiser, save_denoiser
from student_trainer.evaluation.config import EvaluationConfig
from student_trainer.evaluation.subjects import Setting, read_subjects
from tests.tiny_models import qwen2_config

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {
        "instruction": f"add {index}",
        "input": "left, right",
        "output": "return left + right\n",
        "messages": [
            {"role": "user", "content": f"print {index}"},
            {"role": "assistant", "content": "print(index)"},
        ],
    }
    for index in range(6)
]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    """A checkpoint whose tokenizer has a chat template."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_denoiser(new_denoiser(qwen2_config(vocab_size=len(tokenizer)), tokenizer, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def held_out(model, data, **settings):
    config = EvaluationConfig(
        model=[str(model)], data_path=str(data), output_dir="-", max_seq_len=96, gen_length=24,
        num_sequences=len(ROWS), **settings,
    )  # fmt: skip
    setting = Setting(config, read_subjects(config))
    return setting.held_out(setting.subjects[0])


def prompt_and_answer(found, index):
    """The texts of a sequence before and after the end of its prompt."""
    ids, prompt_length = found.dataset.read(index)
    parts = ids[:prompt_length].tolist(), ids[prompt_length:].tolist()
    return tuple(found.tokenizer.decode(part, skip_special_tokens=True) for part in parts)


def test_prompt_and_answer_keys_are_those_of_training(model, data):
    keys = {"prompt_keys": ["instruction", "input"], "answer_keys": ["output"]}

    found = held_out(model, data, **keys)

    assert prompt_and_answer(found, 2) == ("add 2\n\nleft, right", "return left + right\n")


def test_a_conversation_is_given_up_to_the_answer_that_is_measured(model, data):
    found = held_out(model, data, messages_key="messages")

    assert prompt_and_answer(found, 3) == ("<user>print 3\n<assistant>", "print(index)\n")
    states = found.states
    for row, index in enumerate(states.sequences_B.tolist()):
        start = int(states.maskable_BL[row].nonzero()[0])
        prompts = {
            tuple(found.dataset.sequence(i)[: found.dataset.prompt_lengths[i]].tolist())
            for i in range(len(ROWS))
        }
        assert tuple(states.x0_BL[row, :start].tolist()) in prompts, index


def test_the_split_that_is_held_out_is_read(model, tmp_path):
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {index} = read(file)" * 3] * 3})
        for index, name in enumerate(("train", "test"))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")

    found = held_out(model, tmp_path / "saved")
    trained = held_out(model, tmp_path / "saved", split="train")

    assert found.tokenizer.decode(found.dataset.sequence(0).tolist()).count("test 1") == 3
    assert trained.tokenizer.decode(trained.dataset.sequence(0).tolist()).count("train 0") == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt_keys": ["instruction"]}, "give both or neither"),
        (
            {"prompt_keys": ["a"], "answer_keys": ["b"], "messages_key": "messages"},
            "give one of them",
        ),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(model, data, keys, message):
    with pytest.raises(ValueError, match=message):
        held_out(model, data, **keys)
