"""Reading documents: every format, and every mistake with its name."""

import json
from functools import partial

import pyarrow
import pytest
from pyarrow import parquet

from student_trainer.data_sources import row_files
from student_trainer.documents import documents_of
from student_trainer.row_keys import RowKeys
from student_trainer.rows import Row


def read(path, *text_keys):
    keys = RowKeys(text=text_keys or ("text",))
    return [item for file in row_files(str(path)) for item in documents_of(file.rows(), keys)]


def parts(row, **keys):
    """(prompt, text) of one row's documents."""
    rows = [Row("here", partial(dict, row))]
    return [(item.prompt, item.text) for item in documents_of(rows, RowKeys(**keys))]


def test_a_directory_gives_its_files_in_order_and_every_format(tmp_path):
    (tmp_path / "a.txt").write_text("plain\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "c.jsonl").write_text('{"text": "row one"}\n\n{"text": "row two"}\n')
    (tmp_path / "d.json").write_text(json.dumps([{"text": "in a list"}]))
    (tmp_path / ".hidden").write_text("not data")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.json").write_text('{"text": "alone"}')

    documents = read(tmp_path)

    texts = ["plain\n", "x = 1\n", "row one", "row two", "in a list", "alone"]
    assert [document.text for document in documents] == texts
    assert documents[3].source == f"{tmp_path / 'c.jsonl'}, line 3"


def test_comma_separated_paths_are_read_in_the_order_given(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    texts = [document.text for document in read(f"{tmp_path}/b.txt, {tmp_path}/a.txt")]
    assert texts == ["b", "a"]


def test_text_keys_are_alternatives_and_the_first_present_is_taken(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"content": "c"}\n{"text": "t", "content": "c"}\n')
    assert [document.text for document in read(path, "text", "content")] == ["c", "t"]


def test_prompt_and_answer_are_two_parts_of_one_document(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "answer": "a"}\n')
    (document,) = read(path, "prompt", "answer")
    assert (document.prompt, document.text) == ("p", "a")


def test_the_parts_of_a_prompt_are_joined_and_missing_ones_left_out():
    keys = {"prompt": ("instruction", "input"), "answer": ("output", "response")}
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert parts(row, **keys) == [("Add.\n\n1 2", "3")]
    assert parts(row | {"input": ""}, **keys) == [("Add.", "3")]
    # Columnar formats have every key in every row.
    assert parts(row | {"input": None, "response": "3", "output": None}, **keys) == [("Add.", "3")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"instruction": "i"},
            "found keys instruction; wanted both of instruction or input, output",
        ),
        ({"output": "o"}, "found keys output; wanted both of instruction or input, output"),
        ({"instruction": 1, "output": "o"}, "'instruction' must be a string, got int"),
        ({"instruction": "i", "output": None}, "'output' must be a string, got NoneType"),
    ],
)
def test_a_pair_that_is_not_whole_is_named(row, told):
    with pytest.raises(ValueError, match=r"^here: ") as error:
        parts(row, prompt=("instruction", "input"), answer=("output",))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"prompt": ("p",)}, "give both or neither"),
        ({"answer": ("a",)}, "give both or neither"),
        ({"prompt": ("p",), "answer": ("a",), "messages": "m"}, "give one of them"),
        ({"text": ()}, "data.text_keys is empty"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, told):
    with pytest.raises(ValueError, match=told):
        RowKeys(**keys)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "x", ["a.csv", "'.csv'", ".jsonl"]),
        ("a.jsonl", '{"text": "t"}\n{"body": "b"}\n', ["line 2", "body", "wanted one of text"]),
        ("a.jsonl", "[1]\n", ["line 1", "expected a JSON object, got list"]),
        ("a.jsonl", "{\n", ["line 1", "not valid JSON"]),
        ("a.jsonl", '{"text": 3}\n', ["line 1", "'text' must be a string, got int"]),
        ("a.json", '[{"text": "t"}, {"body": "b"}]', ["row 2", "body"]),
    ],
)
def test_bad_input_is_named(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_prompt_without_its_answer_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(ValueError, match="wanted both of prompt, answer"):
        read(path, "prompt", "answer")


@pytest.mark.parametrize("train_path", ["nowhere", "", "nowhere,"])
def test_a_missing_path_is_an_error(train_path):
    with pytest.raises(ValueError, match=r"does not exist|empty part"):
        read(train_path)


def test_an_empty_directory_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="directory without files"):
        read(tmp_path)


def test_parquet_rows_are_documents(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    assert [document.text for document in read(path)] == ["one", "two"]
