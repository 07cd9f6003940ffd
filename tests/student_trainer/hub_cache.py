"""A local cache laid out as the hub's, with one dataset in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMIT = "c0ffee" * 6 + "c0ff"


def write_dataset(
    cache: Path, name: str, files: Mapping[str, Sequence[Mapping[str, object]]]
) -> Path:
    """Writes JSONL files as one snapshot of a dataset; its folder.

    Args:
        files: their names, such as data/train-00000-of-00002.jsonl, with their rows.
    """
    repository = cache / f"datasets--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for file, rows in files.items():
        path = snapshot / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot
