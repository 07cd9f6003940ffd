"""Problems asked, answers run and counted, with a denoiser that blunders as it likes."""

import json

import pytest

from student_trainer.tasks.code_tasks import CodeTaskOptions, prepare_code_task, run_code_task
from student_trainer.tasks.model_args import read_model_args
from student_trainer.tasks.pass_at_k import pass_at_k
from student_trainer.tasks.text_denoiser import TextDenoiser

NUM_SAMPLES = 6
# The answer stands in a string; whether it passes depends on what was drawn.
PROMPTS = ["text = r'''", "x = 1\ntext = r'''"]
TEST = "'''\ndef check(f): assert len(text) % 2 == 0\nf = None\n"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "ours.jsonl"
    rows = [
        {"task_id": f"Ours/{i}", "prompt": prompt, "entry_point": "f", "test": TEST}
        for i, prompt in enumerate(PROMPTS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"humaneval": str(path)}


@pytest.fixture(scope="module")
def texts(tiny_denoiser):
    options = {"pretrained": "-", "max_new_tokens": 6, "steps": 3, "temperature": 1.0}
    return TextDenoiser(tiny_denoiser, read_model_args(options))


def options_of(data, **more):
    return CodeTaskOptions(
        confirm_run_unsafe_code=True, accept_weaker_isolation=True, data=data, **more
    )


def run(texts, data, **more):
    return run_code_task(texts, prepare_code_task("humaneval", options_of(data, **more)))


def passes(prompt, answer):
    """Runs in this process what we wrote ourselves, but for the answer in a string."""
    try:
        exec(compile(f"{prompt}{answer}\n{TEST}\ncheck(f)\n", "ours", "exec"), {})
    except Exception:
        return False
    return True


def test_pass_at_k_is_that_of_the_answers_run_one_by_one(texts, data):
    result = run(texts, data, num_programs=NUM_SAMPLES, pass_at=(1, 3))

    found = [[a.outcome.verdict == "passed" for a in p.attempts] for p in result.problems]
    answers = [[a.answer for a in p.attempts] for p in result.problems]
    expected = [
        [passes(prompt, answer) for answer in given]
        for prompt, given in zip(PROMPTS, answers, strict=True)
    ]
    assert found == expected
    assert 0 < sum(map(sum, found)) < 2 * NUM_SAMPLES
    for score, k in zip(result.scores, (1, 3), strict=True):
        values = [pass_at_k(NUM_SAMPLES, sum(row), k) for row in expected]
        assert score.metric == f"pass@{k}"
        assert score.value == pytest.approx(sum(values) / 2)
    assert sum(result.verdicts.values()) == 2 * NUM_SAMPLES
    assert result.distinct_fraction == pytest.approx(
        sum(len(set(given)) for given in answers) / (2 * NUM_SAMPLES)
    )


def test_answers_are_those_of_the_sampler_whatever_the_number_of_problems(texts, data):
    whole = run(texts, data, num_programs=2)
    part = run(texts, data, num_programs=2, limit=1)

    assert [p.task_id for p in part.problems] == ["Ours/0"]
    assert part.problems[0] == whole.problems[0]


def test_a_chat_is_asked_in_the_words_of_its_template(tiny_denoiser, texts, data, monkeypatch):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tiny_denoiser.tokenizer, "chat_template", template)
    asked = []
    answer = texts.generate_texts

    def listen(requests):
        asked.extend(requests)
        return answer(requests)

    monkeypatch.setattr(texts, "generate_texts", listen)

    run(texts, data, apply_chat_template=True, limit=1)

    ((prompt, request),) = asked
    assert prompt.startswith("<user>Write a solution to the following problem")
    assert prompt.endswith(f"<assistant>Here is the completed function:\n```python\n{PROMPTS[0]}\n")
    assert request["until"] == ["```"]


def test_nothing_is_prepared_before_it_is_confirmed(data):
    with pytest.raises(ValueError, match="--confirm_run_unsafe_code"):
        prepare_code_task("humaneval", CodeTaskOptions(data=data))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"pass_at": (2,)}, r"pass_at must lie in \[1, num_programs=1\], got \[2\]"),
        ({"pass_at": ()}, "pass_at must lie in"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"data": {"humanevil": "x"}}, "unknown task 'humanevil'; known: humaneval"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        CodeTaskOptions(**choices)
