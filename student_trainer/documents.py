"""Documents: what a training run reads from disk, before any tokenizer sees it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROMPT_KEYS = ("prompt", "answer")
"""The one pair of text keys that names two parts of a row instead of two alternatives."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text; `prompt`, where not empty, comes before it and is never masked."""

    text: str
    prompt: str = ""
    source: str
    """File and, inside a file of many rows, the row: for error messages."""


def load_documents(train_path: str, *, text_keys: Sequence[str]) -> Iterator[Document]:
    """Reads every document of the comma separated files and directories, in sorted order.

    Args:
        train_path: Files or directories (all files below, hidden ones left out). The extension
            decides: .jsonl and .json rows, .txt and .py one document a file, .parquet rows.
        text_keys: Alternatives for the row's text, the first one present is taken; exactly
            ("prompt", "answer") reads both, and the prompt is then never masked.

    Raises:
        ValueError: A path that does not exist, an extension that is not known, a row without
            any of the keys.
    """
    if not text_keys:
        raise ValueError("text_keys is empty; name at least one key, for example 'text'")
    for path in data_files(train_path):
        yield from READERS[path.suffix](path, tuple(text_keys))


def data_files(train_path: str) -> list[Path]:
    """Lists the files that `load_documents` reads; the same errors for paths and extensions."""
    files: list[Path] = []
    for name in (part.strip() for part in train_path.split(",")):
        if not name:
            raise ValueError(f"train_path {train_path!r} has an empty part; separate by one comma")
        files += _files_of(Path(name))
    for path in files:
        if path.suffix not in READERS:
            raise ValueError(
                f"{path}: unknown extension {path.suffix!r}; known: {', '.join(sorted(READERS))}"
            )
    return files


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"train_path {str(path)!r} does not exist; give a file or a directory")
    below = (file for file in path.rglob("*") if file.is_file())
    files = sorted(
        file
        for file in below
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise ValueError(f"train_path {str(path)!r} is a directory without files")
    return files


def _read_plain(path: Path, text_keys: tuple[str, ...]) -> Iterator[Document]:
    yield Document(text=path.read_text(encoding="utf-8"), source=str(path))


def _read_jsonl(path: Path, text_keys: tuple[str, ...]) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                source = f"{path}, line {number}"
                yield _document_of(_parse(line, source), text_keys, source)


def _read_json(path: Path, text_keys: tuple[str, ...]) -> Iterator[Document]:
    content = _parse(path.read_text(encoding="utf-8"), str(path))
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        yield _document_of(row, text_keys, f"{path}, row {number}")


def _read_parquet(path: Path, text_keys: tuple[str, ...]) -> Iterator[Document]:
    try:
        from pyarrow import parquet  # noqa: PLC0415  an optional package, only for these files
    except ImportError as error:
        raise ValueError(f"{path}: parquet files need pyarrow; run: pip install pyarrow") from error
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield _document_of(row, text_keys, f"{path}, row {number}")


READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Document]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_plain,
    ".py": _read_plain,
    ".parquet": _read_parquet,
}


def _parse(text: str, source: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from error


def _document_of(row: object, text_keys: tuple[str, ...], source: str) -> Document:
    if not isinstance(row, Mapping):
        raise ValueError(f"{source}: expected a JSON object, got {type(row).__name__}")
    if text_keys == PROMPT_KEYS:
        wanted, present = "both of", all(key in row for key in text_keys)
    else:
        wanted, present = "one of", any(key in row for key in text_keys)
    if not present:
        raise ValueError(
            f"{source}: found keys {', '.join(sorted(map(str, row)))}; wanted {wanted} "
            f"{', '.join(text_keys)}; set data.text_keys"
        )
    if text_keys == PROMPT_KEYS:
        prompt, text = (_text_at(row, key, source) for key in PROMPT_KEYS)
        return Document(text=text, prompt=prompt, source=source)
    key = next(key for key in text_keys if key in row)
    return Document(text=_text_at(row, key, source), source=source)


def _text_at(row: Mapping[str, object], key: str, source: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{source}: {key!r} must be a string, got {type(value).__name__}")
    return value
