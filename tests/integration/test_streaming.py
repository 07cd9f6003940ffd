"""Whole runs on streamed, packed and paired data."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from student_trainer import train
from student_trainer.metrics import read_metrics
from tests import training

NUM_STEPS = 6
LOSSES = ("loss", "ce", "grad_norm", "num_masked", "num_tokens")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"), num_documents=20)


@pytest.fixture
def settings(tiny_checkpoint) -> dict[str, object]:
    return {
        "distill.distillation_alpha": 0.0,
        "distill.teacher_model_path": tiny_checkpoint,
        "data.min_chunk_tokens": 4,
        "data.shuffle_buffer_size": 5,
        "train.global_batch_size": 8,
        "train.micro_batch_size": 2,
        "train.max_steps": NUM_STEPS,
        "train.save_hf_weights": False,
    }


@pytest.fixture
def stream(settings) -> dict[str, object]:
    return settings | {"data.streaming": True}


def test_a_stream_goes_on_bit_for_bit(data, stream, tmp_path):
    whole = training.run(training.arguments(tmp_path / "whole", data, stream))
    saving = training.arguments(tmp_path / "parts", data, stream | {"train.save_steps": 3})
    training.run([*saving, "--train.max_steps=4", "--train.lr_decay_style=constant"])
    constant = training.run(
        training.arguments(
            tmp_path / "constant", data, stream | {"train.lr_decay_style": "constant"}
        )
    )
    parts = training.run(
        [
            *saving,
            "--train.lr_decay_style=constant",
            f"--train.load_checkpoint_path={tmp_path / 'parts' / 'checkpoints' / 'step-3'}",
        ]
    )
    names = [*training.TIMES, *training.ASKING]
    assert training.without(parts[-3:], *names) == training.without(constant[-3:], *names)
    # A stream and not the same batch again.
    assert len({step["num_masked"] for step in whole}) > 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stream_of_one_rank_goes_on_on_two_with_workers(data, stream, tmp_path):
    one = training.run(training.arguments(tmp_path / "one", data, stream | {"train.save_steps": 3}))
    two = stream | {
        "train.load_checkpoint_path": tmp_path / "one" / "checkpoints" / "step-3",
        "data.num_workers": 1,
        "train.save_steps": 5,
    }
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "student_trainer.train"),
            *training.arguments(tmp_path / "two", data, two),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
    resumed = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [step["step"] for step in resumed] == [4, 5, 6]
    for ours, theirs in zip(resumed, one[3:], strict=True):
        for name in LOSSES:
            # Float32 sums in another order.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    # And what two ranks saved goes on on one.
    saved = {"train.load_checkpoint_path": tmp_path / "two" / "checkpoints" / "step-5"}
    (last,) = training.run(training.arguments(tmp_path / "again", data, stream | saved))
    for name in LOSSES:
        assert last[name] == pytest.approx(one[-1][name], rel=1e-5)


def test_packing_changes_no_loss_and_may_change_at_a_resume(data, settings, tmp_path):
    settings |= {"train.micro_batch_size": 8, "train.save_steps": 3}
    padded = training.run(training.arguments(tmp_path / "padded", data, settings))
    packed = training.run(
        training.arguments(
            tmp_path / "packed",
            data,
            settings
            | {
                "data.packing": True,
                "train.load_checkpoint_path": tmp_path / "padded" / "checkpoints" / "step-3",
            },
        )
    )
    for ours, theirs in zip(packed, padded[3:], strict=True):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_a_run_on_other_data_or_in_another_order_is_refused(data, stream, tmp_path, capsys):
    training.run(
        training.arguments(
            tmp_path / "one", data, stream | {"train.save_steps": 2, "train.max_steps": 2}
        )
    )
    resume = stream | {"train.load_checkpoint_path": tmp_path / "one" / "checkpoints" / "step-2"}
    other = training.write_texts(tmp_path, num_documents=19)
    for path, change, told in (
        (other, {}, "data_size was"),
        (data, {"data.shuffle_buffer_size": 6}, "shuffle_buffer_size was 5 and is 6 now"),
        (data, {"data.max_seq_len": 32}, "data_cut was"),
        (data, {"data.streaming": False}, "data_mode was streaming and is mapped now"),
    ):
        command = training.arguments(tmp_path / "two", path, resume | change)
        assert train.main(command) == train.EXIT_FAILED
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code_and_text"),
    [
        ({"train.max_steps": None}, (2, "train.max_steps must be given with data.streaming=true")),
        ({"data.prompt_keys": ["prompt"]}, (2, "data.answer_keys is []; give both or neither")),
        ({"data.text_keys": ["body"]}, (1, "train.jsonl, line 1: found keys answer, prompt, text")),
        ({"data.messages_key": "messages"}, (1, "line 1: found keys text, prompt, answer")),
    ],
)
def test_bad_input_is_one_line(changes, code_and_text, data, stream, tmp_path):
    settings = {name: value for name, value in (stream | changes).items() if value is not None}
    command = training.arguments(tmp_path / "out", data, settings)
    if "train.max_steps" in changes:
        command = [word for word in command if not word.startswith("--train.max_steps")]
    code, told = code_and_text
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert train.main(command) == code
    (line,) = [line for line in errors.getvalue().splitlines() if "distill train" in line]
    assert told in line


def test_pairs_train_on_answers_alone(data, settings, tmp_path):
    pairs = {
        "data.prompt_keys": ["prompt"],
        "data.answer_keys": ["answer"],
        "data.max_seq_len": 256,
    }
    paired = training.run(training.arguments(tmp_path / "pairs", data, settings | pairs))
    texts = training.run(
        training.arguments(tmp_path / "texts", data, settings | {"data.max_seq_len": 256})
    )
    # The same texts and draws, of which the first characters are given.
    for pair, text in zip(paired, texts, strict=True):
        assert 0 < pair["num_masked"] < text["num_masked"]
