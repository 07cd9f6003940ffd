"""`distill evaluate --tasks`: what lm-eval asks and what programs do, for several models."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masked_diffusion.checkpoints import load_denoiser, new_denoiser, save_denoiser
from masked_diffusion.families.mdlm_config import MdlmConfig
from student_trainer.evaluation import command, model_spec
from student_trainer.tasks.harness import HarnessOptions
from student_trainer.tasks.model_args import read_model_args
from student_trainer.tasks.run import TasksOptions, prepare_tasks, run_tasks
from student_trainer.tasks.sandbox.isolation import ISOLATIONS
from tests.student_trainer.tasks import lm_eval_tasks
from tests.student_trainer.tasks.lm_eval_tasks import CHOICE_ROWS
from tests.tiny_models import qwen2_config

ROOT = Path(__file__).parents[3]
PASSES = "'''\ndef check(f): pass\nf = None\n"
FAILS = "'''\ndef check(f): assert False\nf = None\n"
PROBLEMS = [
    {"task_id": f"Ours/{i}", "prompt": "text = r'''", "entry_point": "f", "test": test}
    for i, test in enumerate((PASSES, FAILS, PASSES))
]
CONFIRMED = ("--confirm_run_unsafe_code", "--accept_weaker_isolation")
ANSWERS = ("--model_args", "max_new_tokens=6,steps=3,mc_num=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Problems, and the tasks of lm-eval."""
    folder = tmp_path_factory.mktemp("tasks")
    lm_eval_tasks.write(folder)
    (folder / "ours.jsonl").write_text("\n".join(map(json.dumps, PROBLEMS)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def student(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "hf_ckpt"
    config = qwen2_config(vocab_size=len(tiny_tokenizer), hidden_size=16)
    save_denoiser(new_denoiser(config, tiny_tokenizer, seed=3), folder)
    return folder


def tasks_arguments(folder):
    return [
        *("--tasks", "our_choice,humaneval", "--include_path", str(folder / "tasks"), *ANSWERS),
        *("--code_data", f"humaneval={folder}/ours.jsonl", "--seed", "7", "--batch_size", "5"),
    ]


@pytest.fixture(scope="module")
def outcome(tiny_checkpoint, student, folder, tmp_path_factory):
    """One run of two models on both kinds of tasks, without held-out text."""
    out = tmp_path_factory.mktemp("run") / "out"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "student_trainer.cli", "evaluate", *CONFIRMED),
            *("--teacher", str(tiny_checkpoint), "--model", f"student={student}"),
            *(*tasks_arguments(folder), "--output_dir", str(out), "--device", "cpu"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return out, json.loads((out / "evaluation.json").read_text(encoding="utf-8")), result.stdout


def scores_of(values, name):
    (found,) = (m for m in values["evaluations"]["tasks"]["models"] if m["model"] == name)
    return {(score["task"], score["metric"]): score for score in found["scores"]}


def test_tasks_alone_need_no_held_out_text(outcome):
    _, values, _ = outcome
    assert list(values["evaluations"]) == ["tasks"]
    assert [model["name"] for model in values["models"]] == ["teacher", "student"]
    assert values["skipped"] == []


def test_scores_are_those_of_each_model_asked_alone(outcome, folder, tiny_checkpoint, student):
    out, values, _ = outcome
    lines = (out / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["task"] == "our_choice"]
    options = TasksOptions(harness=HarnessOptions(include_path=str(folder / "tasks")))
    prepared = prepare_tasks(["our_choice"], options)
    lm_options = read_model_args({"pretrained": "-", "mc_num": 8, "seed": 7})
    for name, path in (("teacher", tiny_checkpoint), ("student", student)):
        denoiser = load_denoiser(str(path)).eval()
        result = run_tasks(denoiser, prepared, lm_options=lm_options)
        assert result.harness is not None
        asked = result.harness.raw["samples"]["our_choice"]
        bounds = [bound for sample in asked for bound, _ in sample["filtered_resps"]]
        assert bounds == pytest.approx(
            [b for row in rows if row["model"] == name for b, _ in row["filtered_resps"]], rel=1e-5
        )
        (wanted,) = result.scores
        found = scores_of(values, name)["our_choice", "acc"]
        assert (found["value"], found["stderr"]) == (wanted.value, pytest.approx(wanted.stderr))
        assert found["num_questions"] == len(CHOICE_ROWS)


def test_programs_are_counted_and_their_isolation_is_stated(outcome):
    folder, values, printed = outcome
    score = scores_of(values, "student")["humaneval", "pass@1"]
    # Two of three pass; the standard error of a share over three problems.
    assert score["value"] == pytest.approx(2 / 3)
    assert score["stderr"] == pytest.approx(math.sqrt((2 / 3 * 1 / 3) * 3 / 2 / 3))
    (code,) = values["evaluations"]["tasks"]["models"][1]["code_tasks"]
    assert code["verdicts"] == {"passed": 2, "failed": 1, "timeout": 0}
    assert code["isolation"] in ISOLATIONS
    assert code["isolation"] in printed
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert f"Programs ran in {code['isolation']}: " in page


def test_scores_are_printed_with_their_errors_and_drawn(outcome):
    folder, values, printed = outcome
    for name in ("teacher", "student"):
        score = scores_of(values, name)["our_choice", "acc"]
        (line,) = (line for line in printed.splitlines() if "our_choice" in line and name in line)
        assert f"{score['value']:.4f}" in line
        assert f"{score['stderr']:.4f}" in line
    assert (folder / "tasks.png").stat().st_size > 0
    assert 'alt="Benchmark tasks' in (folder / "index.html").read_text(encoding="utf-8")


def test_settings_of_the_evaluation_hold_where_model_args_name_none(outcome):
    _, values, _ = outcome
    found = values["evaluations"]["tasks"]
    assert (found["generation"]["seed"], found["likelihood"]["seed"]) == (7, 7)
    assert (found["generation"]["batch_size"], found["generation"]["num_steps"]) == (5, 3)
    assert found["likelihood"]["num_masks"] == 8


def test_every_question_is_kept_with_its_answers(outcome):
    folder, _, _ = outcome
    lines = (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for name in ("teacher", "student"):
        asked = [row for row in rows if row["model"] == name]
        assert len([row for row in asked if row["task"] == "our_choice"]) == len(CHOICE_ROWS)
        answers = [row["answers"] for row in asked if row["task"] == "humaneval"]
        assert [[one["verdict"] for one in given] for given in answers] == [
            ["passed"], ["failed"], ["passed"],
        ]  # fmt: skip


def evaluate(*arguments, model, output_dir):
    return command.main(
        ["--model", str(model), "--output_dir", str(output_dir), *map(str, arguments)]
    )


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that loads a model."""

    def load(*args, **kwargs):
        pytest.fail("weights were loaded")

    monkeypatch.setattr(model_spec.checkpoints, "load_denoiser", load)


@pytest.mark.usefixtures("no_weights")
def test_no_program_runs_unless_that_is_confirmed(student, folder, tmp_path, capsys):
    arguments = tasks_arguments(folder)
    code = evaluate(*arguments, model=student, output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert "give --confirm_run_unsafe_code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights")
def test_an_unknown_task_is_told(student, folder, tmp_path, capsys, monkeypatch):
    # lm-eval's own index takes 15 s; here it has no task but ours.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "none" / "manager.py"))
    arguments = ("--tasks", "our_choise", "--include_path", folder / "tasks")
    code = evaluate(*arguments, model=student, output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert "unknown task 'our_choise'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_weights")
def test_a_task_whose_data_are_not_here_is_told(student, folder, tmp_path, capsys):
    arguments = ("--tasks", "our_choice,our_lost", "--include_path", folder / "tasks")
    code = evaluate(*arguments, model=student, output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert "the data of task 'our_lost' cannot be had: " in capsys.readouterr().err


@pytest.mark.usefixtures("no_weights")
def test_lm_eval_that_is_not_installed_is_told(student, tmp_path, capsys, monkeypatch):
    # What import does for a module that cannot be found.
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    code = evaluate("--tasks", "arc_easy", model=student, output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert "pip install 'dllm-distill[lm-eval]'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_weights")
def test_likelihoods_of_uniform_noise_are_refused(tiny_tokenizer, folder, tmp_path, capsys):
    config = MdlmConfig(
        vocab_size=len(tiny_tokenizer), hidden_dim=16, n_heads=2, n_blocks=1, model_length=64,
        mask_token_id=tiny_tokenizer.mask_token_id,
    )  # fmt: skip
    config.noise = "uniform"
    save_denoiser(new_denoiser(config, tiny_tokenizer, seed=0), tmp_path / "uniform")
    arguments = ("--tasks", "our_choice", "--include_path", folder / "tasks")
    code = evaluate(*arguments, model=tmp_path / "uniform", output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert (
        "task our_choice asks for likelihoods, and uniform has uniform" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to measure: give --data_path, --tasks or both"),
        (("--tasks", "x,x"), "--tasks must be different from each other"),
        (("--tasks", "x", "--evaluations", "samples"), "--evaluations samples needs --data_path"),
        (("--data_path", "d", "--evaluations", "tasks"), "--evaluations tasks needs --tasks"),
        (
            ("--tasks", "x", "--data_path", "d", "--evaluations", "samples"),
            "--evaluations leaves tasks out",
        ),
        (("--tasks", "x", "--model_args", "steps"), "--model_args takes KEY=VALUE"),
        (("--tasks", "x", "--model_args", "stepss=3"), "did you mean steps"),
        (("--tasks", "x", "--model_args", "dtype=float32"), "said by --model PATH_OR_ID,key=value"),
        (("--tasks", "x", "--pass_at", "3"), "pass_at must lie in [1, num_programs=1]"),
        (("--tasks", "x", "--num_programs", "many"), "num_programs: Input should be a valid"),
        (("--tasks", "x", "--limit", "0"), "limit must be at least 1"),
        (("--tasks", "x", "--code_data", "humanevil=f"), "code_data is for unknown task"),
    ],
)
def test_misuse_is_told_before_anything_is_read(arguments, message, tmp_path, capsys):
    code = evaluate(*arguments, model="/nowhere", output_dir=tmp_path)
    assert code == command.EXIT_MISUSED
    assert message in capsys.readouterr().err
