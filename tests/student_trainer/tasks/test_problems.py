"""Problems of our own in the formats of HumanEval and MBPP."""

import gzip
import json
from dataclasses import replace

import pytest

from student_trainer.tasks.problem_files import read_rows
from student_trainer.tasks.problems import CODE_TASKS, read_humaneval, read_mbpp
from student_trainer.tasks.sandbox.limits import SandboxLimits
from student_trainer.tasks.sandbox.runner import run_sandboxed

HUMANEVAL = [
    {
        "task_id": "Ours/0",
        "prompt": 'def double(x):\n    """Return twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    }
]


def mbpp_row(task_id, **more):
    return {
        "task_id": task_id,
        "text": f"Write a function that adds {task_id}.",
        "code": f"def add(x):\r\n    return x + {task_id}",
        "test_list": [f"assert add(0) == {task_id}", f"assert add(N) == {task_id} + N"],
        "test_setup_code": "N = 5",
        **more,
    }


MBPP = [mbpp_row(task_id) for task_id in (2, 3, 4, 11, 12, 600)]


def verdict(program):
    return run_sandboxed(program, limits=SandboxLimits(wall_s=30), isolation="limits").verdict


def test_the_right_answer_passes_and_a_wrong_one_fails():
    (double,) = read_humaneval(HUMANEVAL, 0)
    add, _ = read_mbpp(MBPP, 3)

    assert verdict(double.program(HUMANEVAL[0]["canonical_solution"])) == "passed"
    assert verdict(double.program("    return x\n")) == "failed"
    assert verdict(add.program(mbpp_row(11)["code"])) == "passed"
    assert verdict(add.program("def add(x): return 11")) == "failed"


def test_mbpp_asks_the_test_split_after_three_solved_problems():
    problems = read_mbpp(MBPP, 3)

    assert [problem.task_id for problem in problems] == ["11", "12"]
    assert problems[0].prompt.count("[DONE]") == 3
    assert problems[0].prompt.index("adds 2.") < problems[0].prompt.index("adds 11.")
    assert problems[0].prompt.endswith("assert add(N) == 11 + N\n[BEGIN]\n")
    assert "[DONE]" not in read_mbpp(MBPP, 0)[0].prompt


def test_mbpp_puts_what_tests_need_before_them():
    rows = [mbpp_row(11, test_setup_code="", test_imports=["import math", "N = 1"])]

    (problem,) = read_mbpp(rows, 0)

    assert problem.tests.split("\n")[1:3] == ["import math", "N = 1"]


@pytest.mark.parametrize(
    ("read", "rows", "num_fewshot", "message"),
    [
        (read_humaneval, [], 0, "there are no problems"),
        (read_humaneval, [{"task_id": 1}], 0, "row 1 of the problems has no field 'prompt'"),
        (read_humaneval, HUMANEVAL, 1, "num_fewshot must be 0"),
        (read_mbpp, MBPP[3:], 2, r"\[2, 3\] are missing"),
        (read_mbpp, MBPP, 4, "num_fewshot must be at most 3"),
        (read_mbpp, MBPP[:3], 0, "no problem of the test split"),
    ],
)
def test_data_that_cannot_be_used_are_refused(read, rows, num_fewshot, message):
    with pytest.raises(ValueError, match=message):
        read(rows, num_fewshot)


@pytest.mark.parametrize("name", ["ours.jsonl", "ours.jsonl.gz"])
def test_problems_are_read_from_lines_of_json(tmp_path, name):
    data = "\n".join(json.dumps(row) for row in HUMANEVAL).encode() + b"\n\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)

    assert read_rows(CODE_TASKS["humaneval"], str(tmp_path / name)) == HUMANEVAL


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\nnothing", "line 2 of .* is not JSON"), ("[1]", "must be an object"), (None, "no file")],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, text, message):
    path = tmp_path / "problems.jsonl"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ValueError, match=message):
        read_rows(CODE_TASKS["humaneval"], str(path))


def test_a_data_set_that_cannot_be_had_is_told():
    task = replace(CODE_TASKS["humaneval"], hub_id="nobody/has-no-such-problems")

    with pytest.raises(ValueError, match=r"nobody/has-no-such-problems cannot be had.*--code_data"):
        read_rows(task, None)
