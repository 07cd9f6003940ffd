"""Files of rows: every format, from any row on, and files that are broken."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from student_trainer.rows import LocalFile

ROWS = [{"text": f"row {index}", "other": index} for index in range(7)]


def lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def compressed(content: bytes, codec: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def write_jsonl(path: Path) -> None:
    path.write_bytes(lines())


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(lines()))


def write_zstd(path: Path) -> None:
    # Two frames, as tools that work in parallel write them.
    half = len(lines()) // 2
    path.write_bytes(
        b"".join(compressed(part, "zstd") for part in (lines()[:half], lines()[half:]))
    )


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)


def write_arrow_file(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_gzip,
    "rows.jsonl.zst": write_zstd,
    "rows.json": write_json,
    "rows.parquet": write_parquet,
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
}


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("first", [0, 2, 3, 6, 7])
def test_every_format_gives_its_rows_from_any_one_on(name, first, tmp_path):
    WRITERS[name](tmp_path / name)
    # Read after all were found, as a window's are.
    rows = list(LocalFile(tmp_path / name).rows(first))
    assert [row.read() for row in rows] == ROWS[first:]
    assert [row.source.partition(", ")[0] for row in rows] == [str(tmp_path / name)] * len(rows)


def test_rows_that_are_passed_over_are_not_parsed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{broken\n\n{"text": "whole"}\n')
    first, second = LocalFile(path).rows()
    assert second.read() == {"text": "whole"}
    with pytest.raises(ValueError, match="line 1: not valid JSON"):
        first.read()
    (only,) = LocalFile(path).rows(1)
    assert only.source == f"{path}, line 3"


@pytest.mark.parametrize("name", ["code.rs", "notes.md", "page.txt.gz"])
def test_a_file_of_text_is_one_row(name, tmp_path):
    content = "fn main() {}\n"
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (row,) = LocalFile(tmp_path / name).rows()
    assert row.read() == content
    assert list(LocalFile(tmp_path / name).rows(1)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.arrow", b"nonsense"),
        ("a.jsonl.gz", b"nonsense"),
        ("a.jsonl.gz", gzip.compress(lines())[:-12]),
        ("a.jsonl.gz", gzip.compress(lines())[:40] + b"?" * 40),
        ("a.jsonl.zst", b"nonsense"),
        ("a.jsonl.zst", compressed(lines(), "zstd")[:-4]),
        ("a.txt", "é".encode("latin-1")),
        ("a.jsonl", '{"text": "é"}'.encode("latin-1")),
    ],
)
def test_a_broken_file_is_one_error_with_its_name(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        for row in LocalFile(path).rows():
            row.read()
    assert str(path) in str(error.value)


def test_another_content_is_another_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = LocalFile(path)
    identity = before.identity
    path.write_text("three")
    assert before.identity != identity
    assert before.size == 5
