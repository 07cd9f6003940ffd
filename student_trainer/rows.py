"""Rows: what a data file holds, found quickly and read only when asked for.

A reader yields rows that are not parsed yet, so that passing over rows costs little: workers share
a file by passing over each other's rows, and a run that goes on passes over those it has had.
"""

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow
from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, or one whole file of text."""

    source: str
    """File and, inside a file of many rows, the row: for error messages."""
    read: Callable[[], object]
    """Parses it: a mapping by column, or the text of a plain file. ValueError if it cannot."""


class RowFile(Protocol):
    """A part of the data that is read from its beginning to its end; can be sent to a process."""

    @property
    def identity(self) -> str:
        """What tells it from another file, or from the same one with other content."""
        ...

    @property
    def size(self) -> int:
        """Bytes or rows, wherever it lies; 0 where that is not known."""
        ...

    def rows(self, first: int = 0) -> Iterator[Row]:
        """All rows from number `first` on, in order; the same ones each time."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file of a known format."""

    path: Path

    @property
    def identity(self) -> str:
        """Path, size in bytes and time of change."""
        stat = self.path.stat()
        return f"{self.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def rows(self, first: int = 0) -> Iterator[Row]:
        """See `RowFile.rows`."""
        return READERS[extension(self.path)](self.path, first)


def extension(path: Path) -> str:
    """The extension that decides the format, without that of a compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _plain_rows(path: Path, first: int) -> Iterator[Row]:
    if first == 0:
        yield Row(str(path), functools.partial(_read_text, path))


def _jsonl_rows(path: Path, first: int) -> Iterator[Row]:
    row = 0
    with _named(path), _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row += 1
            if row > first:
                source = f"{path}, line {number}"
                yield Row(source, functools.partial(_parse, line, source))


def _json_rows(path: Path, first: int) -> Iterator[Row]:
    content = _parse(_read_bytes(path), str(path))
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows[first:], start=first + 1):
        yield Row(f"{path}, row {number}", functools.partial(_same, row))


def _parquet_rows(path: Path, first: int) -> Iterator[Row]:
    with _named(path):
        # Never closed by hand: rows are read after the last of them has been found.
        file = parquet.ParquetFile(path, memory_map=True)
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if end > first:
            # Read when the first of its rows is.
            table = functools.cache(functools.partial(_row_group, file, group, path))
            for index in range(max(first - start, 0), end - start):
                source = f"{path}, row {start + index + 1}"
                yield Row(source, functools.partial(_row_of_group, table, index))
        start = end


def _arrow_rows(path: Path, first: int) -> Iterator[Row]:
    start = 0
    with _named(path):
        for batch in _arrow_batches(pyarrow.memory_map(str(path))):
            for index in range(max(first - start, 0), batch.num_rows):
                source = f"{path}, row {start + index + 1}"
                yield Row(source, functools.partial(_row_of_batch, batch, index))
            start += batch.num_rows


def _arrow_batches(file: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
    """Of the file format, or of the stream format, which `datasets` writes."""
    if file.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        file.seek(0)
        yield from pyarrow.ipc.open_stream(file)


CODE = [
    ".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".hs", ".html", ".java", ".jl",
    ".js", ".kt", ".lua", ".md", ".php", ".pl", ".py", ".r", ".rb", ".rs", ".rst", ".scala", ".sh",
    ".sql", ".swift", ".tex", ".toml", ".ts", ".tsx", ".txt", ".yaml", ".yml",
]  # fmt: skip
"""Extensions of plain text, one document a file."""

COMPRESSIONS = {".bz2": "bz2", ".gz": "gzip", ".zst": "zstd"}
"""Second extensions, and what pyarrow calls them."""

READERS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    ".arrow": _arrow_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    **dict.fromkeys(CODE, _plain_rows),
}


def _open(path: Path) -> BinaryIO:
    if path.suffix not in COMPRESSIONS:
        return path.open("rb")
    # pyarrow's, since it knows all of them, goes on after the first of several frames, and tells of
    # a file that is cut short.
    stream = pyarrow.input_stream(str(path), compression=COMPRESSIONS[path.suffix])
    return io.BufferedReader(stream)


def _read_bytes(path: Path) -> bytes:
    with _named(path), _open(path) as file:
        return file.read()


def _read_text(path: Path) -> str:
    return _decode(_read_bytes(path), str(path))


def _decode(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not valid UTF-8: {error}") from error


def _parse(content: bytes, source: str) -> object:
    try:
        return json.loads(_decode(content, source))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from error


def _same(row: object) -> object:
    return row


def _row_group(file: parquet.ParquetFile, group: int, path: Path) -> pyarrow.Table:
    with _named(path):
        return file.read_row_group(group)


def _row_of_group(table: Callable[[], pyarrow.Table], index: int) -> object:
    return table().slice(index, 1).to_pylist()[0]


def _row_of_batch(batch: pyarrow.RecordBatch, index: int) -> object:
    return batch.slice(index, 1).to_pylist()[0]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file, where what reads it does not."""
    try:
        yield
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
