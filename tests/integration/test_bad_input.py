"""What a user can get wrong: one clear line that names the thing, the value and the mend."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from student_trainer import train
from tests import tiny_models, training
from tests.servers import RunningServer, serve

FAILED, MISUSED = train.EXIT_FAILED, train.EXIT_MISUSED


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    with serve(tiny_denoiser) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(server, tiny_checkpoint) -> dict[str, object]:
    """A run that would work."""
    return {
        "distill.teacher_address": server.address,
        "distill.teacher_model_path": tiny_checkpoint,
        "distill.teacher_timeout_s": 0.5,
        "model.config_overrides": {"num_hidden_layers": 1},
    }


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def write_student(folder: Path, *, vocab_size: int, texts: tuple[str, ...], **sizes) -> Path:
    """A student's configuration with a tokenizer of its own."""
    tokenizer = tiny_models.train_tokenizer(texts, vocab_size=vocab_size)
    tiny_models.qwen2_config(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_refused(capsys, arguments: list[str], *, code: int, told: tuple[str, ...]) -> None:
    """Runs the command line; one line of error must hold everything that is to be told."""
    assert train.main(arguments) == code
    error = capsys.readouterr().err
    (line,) = error.splitlines()
    assert line.startswith("distill train: ")
    for text in told:
        assert text in line, line


@pytest.fixture
def refused(capsys, data, settings, tmp_path):
    """Refuses the working run with some settings changed; None takes one away."""

    def check(changes: dict[str, object], *told: object, code: int) -> None:
        changed = {name: value for name, value in (settings | changes).items() if value is not None}
        arguments = training.arguments(tmp_path / "out", data, changed)
        check_refused(capsys, arguments, code=code, told=tuple(map(str, told)))

    return check


# What the command line alone tells ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"distill.temprature": 2.0},
            ["unknown setting 'distill.temprature'", "did you mean 'distill.temperature'?"],
        ),
        (
            {"distill.distillation_alpha": 1.5},
            ["distill.distillation_alpha must be in [0, 1], got 1.5"],
        ),
        ({"distill.temperature": 0}, ["distill.temperature must be > 0 and finite, got 0.0"]),
        ({"distill.temperature": -2}, ["distill.temperature must be > 0 and finite, got -2.0"]),
        (
            {"distill.diffusion_sampling_alg": "magic"},
            ["distill.diffusion_sampling_alg", "'maskgit_plus'", "'p2'", "got 'magic'"],
        ),
        (
            {"distill.use_stored_logits": True},
            ["distill.stored_logits_path must be a folder or URL", "got None"],
        ),
        (
            {"distill.teacher_address": None, "distill.teacher_model_path": None},
            ["distill.distillation_alpha is 0.5 but no teacher is given", "set distill.teacher_ad"],
        ),
        (
            {"distill.teacher_model_path": None},
            ["the student needs one of model_path, config_path and teacher_model_path"],
        ),
        (
            {"model.model_path": "a", "model.config_path": "b"},
            ["model_path 'a' already says", "config_path = 'b'", "leave one of the two out"],
        ),
        (
            {"train.global_batch_size": 6},
            ["train.global_batch_size is 6", "no multiple", "4 times 1 ranks; use 4"],
        ),
        ({"train.output_dir": ""}, ["train.output_dir must be given"]),
        (
            {"distill.encoding": "top_k", "distill.value_dtype": "bf16"},
            ["distill.value_dtype must be f16 or f32 with distill.encoding=top_k, got 'bf16'"],
        ),
        (
            {"distill.distillation_alpha": 0, "distill.state_source": "trajectory"},
            ["distill.state_source must be noised with distill.distillation_alpha=0"],
        ),
    ],
)
def test_a_misused_command_line_is_refused_at_once(refused, changes, told):
    refused(changes, *told, code=MISUSED)


# What the student's files tell -------------------------------------------------------------------


def test_an_unknown_model_path(refused, tmp_path):
    missing = tmp_path / "missing"
    refused(
        {"model.model_path": missing, "model.config_overrides": None},
        f"no such folder: {missing}",
        code=FAILED,
    )


def test_a_student_without_a_mask_id(refused, tmp_path):
    folder = tmp_path / "student"
    tiny_models.qwen2_config(vocab_size=300).save_pretrained(folder)
    refused(
        {
            "model.config_path": folder,
            "distill.teacher_model_path": None,
            "distill.init_student_from_teacher": False,
        },
        "has no mask token",
        "config.mask_token_id",
        "write it into config.json",
        code=FAILED,
    )


def test_another_vocabulary(refused, tmp_path):
    folder = write_student(tmp_path / "student", vocab_size=280, texts=tiny_models.PYTHON_SOURCES)
    refused(
        {"model.config_path": folder},
        "student and teacher differ in vocab_size",
        "has 280",
        "the teacher 300",
        "give the student the teacher's tokenizer",
        code=FAILED,
    )


def test_another_tokenizer_of_the_same_size(refused, tmp_path):
    texts = (
        "SELECT name FROM people WHERE age > 42;\n" * 3,
        "INSERT INTO people VALUES (1);\n" * 3,
    )
    folder = write_student(tmp_path / "student", vocab_size=300, texts=texts)
    refused(
        {"model.config_path": folder},
        "student and teacher differ in tokenizer_fingerprint",
        "give the student the teacher's tokenizer",
        code=FAILED,
    )


def test_sequences_longer_than_the_student_takes(refused):
    refused(
        {"data.max_seq_len": 257},
        "data.max_seq_len is 257",
        "maximum is 256",
        "lower",
        code=FAILED,
    )


def test_sequences_longer_than_the_teacher_takes(refused):
    refused(
        {
            "data.max_seq_len": 300,
            "model.config_overrides": {"num_hidden_layers": 1, "max_position_embeddings": 512},
        },
        "data.max_seq_len is 300, the teacher's maximum is 256; lower data.max_seq_len",
        code=FAILED,
    )


def test_a_narrower_student_cannot_start_from_the_teacher(refused):
    refused(
        {"model.config_overrides": {"hidden_size": 16}},
        "cannot start from the teacher's weights",
        "hidden_size (16, the teacher's 32)",
        "distill.init_student_from_teacher=false",
        code=FAILED,
    )


def test_an_unknown_field_of_the_model(refused):
    refused(
        {"model.config_overrides": {"num_layers": 1}},
        "has no field 'num_layers'",
        "did you mean 'num_hidden_layers'?",
        code=FAILED,
    )


def test_a_checkpoint_that_is_not_there(refused, tmp_path):
    refused(
        {"train.load_checkpoint_path": tmp_path / "step-9"},
        f"train.load_checkpoint_path '{tmp_path / 'step-9'}' holds no checkpoint",
        code=FAILED,
    )


# What the data tell ------------------------------------------------------------------------------


def test_data_that_are_not_there(refused, tmp_path):
    refused({"data.train_path": tmp_path / "nowhere"}, tmp_path / "nowhere", code=FAILED)


def test_data_without_the_key(refused, data):
    refused({"data.text_keys": "content"}, data, "content", "text", code=FAILED)


def test_an_output_folder_that_is_a_file(refused, data):
    refused({"train.output_dir": data}, data, code=FAILED)


# What the teacher tells --------------------------------------------------------------------------


def test_an_address_where_nobody_is(refused):
    address = free_address()
    refused(
        {"distill.teacher_address": address},
        f"no progress with {address}",
        "check the address and that teacher-server runs there",
        code=FAILED,
    )


def test_an_address_that_is_none(refused):
    refused({"distill.teacher_address": "no-such-host.invalid:1"}, "no-such-host", code=FAILED)


# The real command line ---------------------------------------------------------------------------


def test_a_process_ends_with_its_code_and_one_line(data, settings, tmp_path):
    cases = {
        MISUSED: ({"train.max_stepps": 3}, "unknown setting 'train.max_stepps'"),
        FAILED: (
            {"model.model_path": tmp_path / "missing", "model.config_overrides": {}},
            "no such folder",
        ),
    }
    processes = {
        code: subprocess.Popen(
            [
                sys.executable,
                *("-m", "student_trainer.train"),
                *training.arguments(tmp_path / str(code), data, settings | changes),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, (changes, _) in cases.items()
    }
    for code, (_, told) in cases.items():
        output, error = processes[code].communicate(timeout=100)
        assert processes[code].returncode == code
        (line,) = (text for text in error.splitlines() if text.startswith("distill train: "))
        assert told in line
        assert "Traceback" not in error
        # The configuration comes first, once there is one.
        assert ("train:" in output) == (code == FAILED)


def test_the_working_run_works(data, settings, tmp_path):
    metrics = training.run(training.arguments(tmp_path, data, settings))
    assert len(metrics) == 4
    assert json.loads((tmp_path / "hf_ckpt" / "config.json").read_text())["mask_token_id"] == 2
