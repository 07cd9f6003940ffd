"""Our command for tasks: what it runs, prints and writes, and what it refuses."""

import json

import pytest

from student_trainer.tasks.__main__ import main
from tests.student_trainer.tasks import lm_eval_tasks
from tests.student_trainer.tasks.lm_eval_tasks import CHOICE_ROWS

TEST = "'''\ndef check(f): pass\nf = None\n"
PROBLEM = {"task_id": "Ours/0", "prompt": "text = r'''", "entry_point": "f", "test": TEST}


@pytest.fixture
def arguments(tiny_checkpoint, tmp_path):
    tasks = lm_eval_tasks.write(tmp_path)
    (tmp_path / "ours.jsonl").write_text(json.dumps(PROBLEM), encoding="utf-8")
    return [
        *(str(tiny_checkpoint), "--tasks", "our_choice,humaneval", "--include_path", str(tasks)),
        *("--code_data", f"humaneval={tmp_path}/ours.jsonl"),
        *("--model_args", "max_new_tokens=6,device=cpu,mc_num=8"),
        *("--output_path", str(tmp_path / "found.json")),
    ]


def test_both_kinds_of_tasks_run(arguments, tmp_path, capsys):
    confirmed = [*arguments, "--confirm_run_unsafe_code", "--accept_weaker_isolation"]

    assert main(confirmed) == 0

    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    scores = {(score["task"], score["metric"]): score for score in found["scores"]}
    assert scores["our_choice", "acc"]["num_questions"] == len(CHOICE_ROWS)
    assert scores["humaneval", "pass@1"]["value"] == 1.0
    assert found["code_tasks"][0]["isolation"] in ("namespaces", "limits")
    assert found["options"]["likelihood"]["num_masks"] == 8
    assert len(found["lm_eval"]["samples"]["our_choice"]) == len(CHOICE_ROWS)
    printed = capsys.readouterr().out
    assert "humaneval   pass@1  1.0000" in printed
    assert "programs ran in" in printed


def test_no_program_runs_unless_that_is_confirmed(arguments, tmp_path, capsys):
    assert main(arguments) == 1

    assert "give --confirm_run_unsafe_code" in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_an_unknown_task_is_told(tiny_checkpoint, capsys):
    arguments = [str(tiny_checkpoint), "--tasks", "x", "--include_path", "nowhere"]

    assert main(arguments) == 1

    assert "include_path must be a folder of YAML files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", ""], "--tasks must name at least one task"),
        (["--tasks", "x", "--model_args", "steps"], "--model_args takes KEY=VALUE"),
        (["--tasks", "x", "--model_args", "stepss=3"], "did you mean steps"),
        (["--tasks", "x", "--pass_at", "3"], "k must lie in"),
        (["--tasks", "x", "--num_samples", "many"], "invalid int value"),
    ],
)
def test_misuse_is_told_before_anything_is_loaded(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["nowhere", *arguments])

    assert stop.value.code == 2
    assert message in capsys.readouterr().err
