"""Documents: the texts of rows, before any tokenizer sees them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from student_trainer.chat import Messages, read_messages
from student_trainer.row_keys import RowKeys
from student_trainer.rows import Row


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text; `prompt`, where not empty, comes before it and is never masked."""

    text: str
    prompt: str = ""
    source: str
    """File and, inside a file of many rows, the row: for error messages."""
    messages: Messages | None = None
    """A conversation instead of both, which the tokenizer's chat template turns into text."""


def documents_of(rows: Iterable[Row], keys: RowKeys) -> Iterator[Document]:
    """Reads rows; a conversation gives one document for each answer in it.

    Raises:
        ValueError: naming the row that cannot be read or has not what the keys ask for.
    """
    for row in rows:
        content = row.read()
        if isinstance(content, str):
            yield Document(text=content, source=row.source)
        elif not isinstance(content, Mapping):
            raise ValueError(f"{row.source}: expected a JSON object, got {type(content).__name__}")
        elif keys.messages:
            for messages in read_messages(content, keys.messages, row.source):
                yield Document(text="", source=row.source, messages=messages)
        else:
            yield _document_of(content, keys, row.source)


def _document_of(row: Mapping[str, object], keys: RowKeys, source: str) -> Document:
    if keys.pair is None:
        text = _first(row, keys.text, source, wanted=f"one of {', '.join(keys.text)}")
        return Document(text=text, source=source)
    prompt_keys, answer_keys = keys.pair
    wanted = f"both of {' or '.join(prompt_keys)}, {' or '.join(answer_keys)}"
    answer = _first(row, answer_keys, source, wanted=wanted)
    present = [key for key in prompt_keys if row.get(key) is not None]
    if not present:
        raise _missing(row, source, wanted)
    parts = [_text_at(row, key, source) for key in present]
    return Document(text=answer, prompt="\n\n".join(part for part in parts if part), source=source)


def _first(row: Mapping[str, object], keys: Sequence[str], source: str, *, wanted: str) -> str:
    # Columnar formats have every key in every row, None where there is nothing.
    present = [key for key in keys if row.get(key) is not None] or [k for k in keys if k in row]
    if not present:
        raise _missing(row, source, wanted)
    return _text_at(row, present[0], source)


def _missing(row: Mapping[str, object], source: str, wanted: str) -> ValueError:
    return ValueError(
        f"{source}: found keys {', '.join(sorted(map(str, row)))}; wanted {wanted}; "
        "set data.text_keys, or data.prompt_keys and data.answer_keys"
    )


def _text_at(row: Mapping[str, object], key: str, source: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{source}: {key!r} must be a string, got {type(value).__name__}")
    return value
