"""The demo's training runs: their settings, and when a finished one is taken again."""

import dataclasses
import json

import pytest

from masked_diffusion import checkpoints
from student_trainer import config_file, demo_runs
from student_trainer.demo_plan import QUICK
from student_trainer.student_config import read_config
from tests import training

SIZE = dataclasses.replace(QUICK.student, hidden_size=16)


def settings(tmp_path, name: str, **more) -> dict[str, dict[str, object]]:
    return demo_runs.settings_for(
        dataclasses.replace(QUICK, max_seq_len=48, micro_batch_size=2),
        folder=tmp_path / name,
        config_path=tmp_path / "config",
        train_path=tmp_path / "train.jsonl",
        **{"num_steps": 1, "lr": 1e-3, **more},
    )


def flags(sections: dict[str, dict[str, object]]) -> list[str]:
    return [
        f"--{section}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for section, fields in sections.items()
        for name, value in fields.items()
    ]


def test_a_written_size_is_a_student_with_that_tokenizer(tiny_tokenizer, tmp_path):
    demo_runs.write_model_config(tmp_path, SIZE, QUICK, tiny_tokenizer)
    config = read_config(str(tmp_path))
    assert (config.hidden_size, config.num_hidden_layers) == (16, SIZE.num_hidden_layers)
    denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)
    assert denoiser.info.vocab_size == len(tiny_tokenizer)
    assert denoiser.info.max_length >= QUICK.max_seq_len


def test_an_address_makes_the_difference_between_a_student_and_its_control(tmp_path):
    control = config_file.load_config(flags(settings(tmp_path, "control")))
    student = config_file.load_config(
        flags(settings(tmp_path, "student", teacher_address="127.0.0.1:1"))
    )
    assert not control.uses_teacher
    assert student.uses_teacher
    assert student.distill.distillation_alpha == QUICK.distillation_alpha
    # Both begin with the same random weights.
    assert not student.init_student_from_teacher
    assert student.model == control.model
    folder = control.train.output_dir
    assert dataclasses.replace(student.train, output_dir=folder) == control.train


@pytest.mark.slow
def test_a_finished_run_is_taken_again_until_something_changes(tiny_tokenizer, tmp_path, capfd):
    training.write_texts(tmp_path)
    demo_runs.write_model_config(tmp_path / "config", SIZE, QUICK, tiny_tokenizer)

    def train(depends_on: str, **more) -> demo_runs.Run:
        return demo_runs.train(
            tmp_path / "run",
            settings(tmp_path, "run", **more),
            num_ranks=1,
            depends_on=[depends_on],
        )

    run = train("a")
    assert not run.reused
    assert [step["step"] for step in run.metrics] == [1]
    assert run.train_s > 0
    checkpoints.load_denoiser(str(run.model_path))

    assert train("a").reused

    # Other data: it is made again, and fails here, since the data is gone.
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(RuntimeError, match=r"training in .*run failed with code 1"):
        train("b")
    assert "train.jsonl" in capfd.readouterr().err
    assert not (tmp_path / "run" / "done.json").exists()
