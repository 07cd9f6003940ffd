"""Whole runs in this process, against a real server: what a command line leads to."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from masked_diffusion import checkpoints
from protos import codec
from student_trainer import train, wire
from student_trainer.client import TeacherClient
from student_trainer.data import load_dataset
from tests import training
from tests.servers import RunningServer, serve
from tests.teacher_server.calls import hidden_of, make_state

ONE_LAYER = {"model.config_overrides": {"num_hidden_layers": 1}}


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    """One row a step, so that equal requests have bit-identical answers."""
    with serve(tiny_denoiser, deterministic=True) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(server, tiny_checkpoint) -> dict[str, object]:
    """A student of the teacher's first and last layer, taught by the server."""
    return {
        **ONE_LAYER,
        "distill.teacher_address": server.address,
        "distill.teacher_model_path": tiny_checkpoint,
    }


def run(folder: Path, data: Path, settings: dict[str, object]) -> list[dict[str, float]]:
    return training.run(training.arguments(folder, data, settings))


def test_a_run_leaves_metrics_configuration_and_a_student_that_serves(
    data, settings, tmp_path, capsys
):
    metrics = run(tmp_path, data, settings | {"train.max_steps": 12})

    assert [step["step"] for step in metrics] == list(range(1, 13))
    assert all(step["kd"] > 0 and step["ce"] > 0 for step in metrics)
    assert metrics[-1]["num_target_bytes"] > metrics[0]["num_target_bytes"] > 0
    # Data masked ever differently is a noisy curve; a tiny student learns fast all the same.
    first, last = (sum(step["loss"] for step in part) for part in (metrics[:4], metrics[-4:]))
    assert last < first

    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert printed["train"]["max_steps"] == 12
    assert printed["distill"]["distillation_alpha"] == 0.5

    student = checkpoints.load_denoiser(str(tmp_path / "hf_ckpt"))
    assert student.model.config.num_hidden_layers == 1
    state = make_state(student.info, length=30, num_masked=10)
    with serve(student) as served, TeacherClient(served.address) as client:
        (record,) = client.score([state], sequence_ids=[0], targets=wire.TargetSpec())
    assert isinstance(record.distribution, codec.Hidden)
    torch.testing.assert_close(
        torch.tensor(record.distribution.values.data),
        torch.tensor(hidden_of(student, state)[record.positions]),
    )


@pytest.mark.parametrize(
    "more",
    [
        {"distill.encoding": "top_k", "distill.top_k": 20, "distill.temperature": 2.0},
        {"distill.encoding": "logits", "distill.divergence": "reverse_kl"},
        {"distill.distillation_alpha": 1.0, "distill.divergence": "jsd"},
        {
            "distill.state_source": "trajectory",
            "distill.num_sampling_steps": 12,
            "distill.collect_every_n_steps": 3,
            "distill.states_per_trajectory": 0,
        },
        {
            "distill.state_source": "trajectory",
            "distill.diffusion_sampling_alg": "entropy",
            "distill.num_sampling_steps": 12,
            "distill.collect_every_n_steps": 2,
        },
        {"train.enable_mixed_precision": True, "distill.value_dtype": "bf16"},
        {"train.loss_weighting": "path", "train.loss_normalizer": "sequence"},
    ],
    ids=["top_k", "logits", "alpha_1", "all_states", "drawn_states", "bf16", "path"],
)
def test_every_way_to_learn_runs(data, settings, tmp_path, more):
    metrics = run(tmp_path, data, settings | {"train.max_steps": 2} | more)
    assert len(metrics) == 2
    assert all(step["num_masked"] > 0 and step["kd"] > 0 for step in metrics)


def test_micro_batches_change_nothing_but_the_time(data, settings, tmp_path):
    curves = []
    for micro_batch_size in (8, 2):
        more = {"train.micro_batch_size": micro_batch_size, "train.global_batch_size": 8}
        curves.append(run(tmp_path / str(micro_batch_size), data, settings | more))
    for whole, pieces in zip(*curves, strict=True):
        assert whole["num_masked"] == pieces["num_masked"]
        # Float32 sums in another order, through four updates.
        for name in ("loss", "ce", "kd", "grad_norm"):
            assert pieces[name] == pytest.approx(whole[name], rel=1e-5)
    for name in ("loss", "ce", "kd", "grad_norm"):
        assert curves[1][0][name] == pytest.approx(curves[0][0][name], rel=1e-6)


def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(data, settings, tmp_path):
    every = settings | {"train.max_steps": 5, "train.save_steps": 3}
    whole = run(tmp_path, data, every)
    digest = checkpoints.weights_digest(checkpoints.load_denoiser(str(tmp_path / "hf_ckpt")))

    # In the same folder, as after a crash: what came after the checkpoint is made again.
    more = {"train.load_checkpoint_path": tmp_path / "checkpoints" / "step-3"}
    resumed = run(tmp_path, data, every | more)

    ignored = (*training.TIMES, *training.ASKING)
    assert training.without(resumed, *ignored) == training.without(whole, *ignored)
    again = checkpoints.load_denoiser(str(tmp_path / "hf_ckpt"))
    assert checkpoints.weights_digest(again) == digest


def test_a_run_goes_on_with_data_that_moved_and_not_with_the_same_in_another_order(
    data, tiny_checkpoint, tmp_path, capsys
):
    lines = data.read_text().splitlines(keepends=True)
    parts = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "moved.jsonl")]
    for part, text in zip(parts, (lines[:12], lines[12:], lines[:12]), strict=True):
        part.write_text("".join(text))
    first, second, moved = map(str, parts)

    def command(*paths: str, num_steps: int) -> list[str]:
        settings = {
            "distill.distillation_alpha": 0.0,
            "distill.teacher_model_path": tiny_checkpoint,
            "train.max_steps": num_steps,
            "train.save_steps": 1,
            "train.load_checkpoint_path": "auto",
            "data.train_path": ",".join(paths),
        }
        return training.arguments(tmp_path / "run", data, settings)

    training.run(command(first, second, num_steps=1))
    assert train.main(command(second, first, num_steps=2)) == train.EXIT_FAILED
    assert "does not fit this run: data_digest was" in capsys.readouterr().err
    assert len(training.run(command(moved, second, num_steps=2))) == 2


def test_without_a_share_of_the_teacher_nobody_is_asked(data, tiny_checkpoint, tmp_path):
    settings = {
        **ONE_LAYER,
        "distill.distillation_alpha": 0,
        "distill.teacher_address": "127.0.0.1:1",  # nobody listens there
        "distill.teacher_model_path": tiny_checkpoint,
    }
    metrics = run(tmp_path, data, settings)
    assert {step["kd"] for step in metrics} == {0.0}
    assert {step["num_target_bytes"] for step in metrics} == {0}
    assert not list(tmp_path.glob("teacher_server*"))


def test_a_student_saved_in_bfloat16_is_trained_in_float32(data, tiny_checkpoint, tmp_path):
    narrow = checkpoints.load_denoiser(str(tiny_checkpoint), dtype=torch.bfloat16)
    checkpoints.save_denoiser(narrow, tmp_path / "narrow")
    settings = {
        "model.model_path": tmp_path / "narrow",
        "distill.distillation_alpha": 0,
        "train.max_steps": 1,
    }
    run(tmp_path / "run", data, settings)
    exported = checkpoints.load_denoiser(str(tmp_path / "run" / "hf_ckpt"))
    assert exported.head_weight.dtype == torch.float32


def test_epochs_are_passes_over_the_data(data, tiny_checkpoint, tiny_tokenizer, tmp_path):
    settings = {"distill.teacher_model_path": tiny_checkpoint, "distill.distillation_alpha": 0}
    epochs = {"train.max_steps": None, "train.num_train_epochs": 0.5, "train.micro_batch_size": 8}
    metrics = run(tmp_path, data, settings | epochs)
    dataset = load_dataset(
        str(data),
        text_keys=["text"],
        tokenizer=tiny_tokenizer,
        max_seq_len=64,
        min_chunk_tokens=8,
    )
    assert len(metrics) == math.ceil(len(dataset) / 2 / 8)


def test_a_student_that_copies_the_teacher_is_refused(data, settings, tmp_path, capsys):
    command = training.arguments(
        tmp_path,
        data,
        settings | {"model.config_overrides": {}, "distill.distillation_alpha": 1},
    )
    assert train.main(command) == train.EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith("distill train: the distillation loss is zero")
    assert not (tmp_path / "hf_ckpt").exists()


def test_a_teacher_that_goes_away_for_good_ends_the_run(
    data, settings, tiny_denoiser, tmp_path, capsys
):
    with serve(tiny_denoiser) as gone:
        pass
    more = {"distill.teacher_address": gone.address, "distill.teacher_timeout_s": 0.5}
    assert train.main(training.arguments(tmp_path, data, settings | more)) == train.EXIT_FAILED
    error = capsys.readouterr().err
    assert f"distill train: no progress with {gone.address}" in error


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run.yaml", "--help"]])
def test_help_is_the_whole_manual(arguments, capsys):
    assert train.main(arguments) == 0
    shown = capsys.readouterr().out
    for name in ("--model.model_path", "--data.train_path", "--train.lr ", "--distill.top_k "):
        assert name in shown


def test_no_argument_is_a_misuse(capsys):
    assert train.main([]) == train.EXIT_MISUSED
    assert "--data.train_path" in capsys.readouterr().out
