"""Reading documents: every format, and every mistake with its name."""

import json
import sys

import pytest

from student_trainer.documents import load_documents


def read(path, *text_keys):
    return list(load_documents(str(path), text_keys=text_keys or ("text",)))


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


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read(tmp_path)


def test_parquet_rows_are_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), path)
    assert [document.text for document in read(path)] == ["one", "two"]
