"""Reads problems: JSON lines on this machine, or a data set of the hub."""

import gzip
import json
from pathlib import Path
from typing import Any

from student_trainer.tasks.problems import CodeTask


def read_rows(task: CodeTask, path: str | None) -> list[dict[str, Any]]:
    """Reads the rows of a task.

    Args:
        task: Which.
        path: A file of JSON lines, gzipped or not; None for the hub or its cache.

    Raises:
        ValueError: no such file, something else than JSON lines, or no way to the data set.
    """
    return _hub_rows(task) if path is None else _file_rows(Path(path).expanduser())


def _file_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"no file of problems {str(path)!r}; give JSON lines, one problem each")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} must be an object, got {line[:80]!r}")
        rows.append(row)
    return rows


def _hub_rows(task: CodeTask) -> list[dict[str, Any]]:
    # Seconds to import, and not needed for files.
    import datasets  # noqa: PLC0415

    try:
        parts = [
            datasets.load_dataset(task.hub_id, task.hub_config, split=split)
            for split in task.hub_splits
        ]
    # Offline, and without a cached copy.
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise ValueError(
            f"the data set {task.hub_id} cannot be had: {error}; give a file with --code_data"
        ) from error
    return [dict(row) for part in parts for row in part]
