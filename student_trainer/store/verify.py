"""Looks at every byte of a store, and gives up what is damaged if the user says so."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from student_trainer.store.errors import StoreError
from student_trainer.store.folder import StoreFolder
from student_trainer.store.head import head_name, load_head
from student_trainer.store.index import (
    CORRUPT_PREFIX,
    ShardEntry,
    StoreIndex,
    locked_indices,
    read_indices,
)
from student_trainer.store.shard import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something damaged."""

    file: str
    reason: str
    num_units: int
    """Units that cannot be used."""


def verify(url: str | os.PathLike[str], *, drop: bool = False) -> list[Problem]:
    """Compares every file with its digest in the index, and finds the records that are damaged.

    Args:
        drop: names damaged units in the index as given up; a shard that cannot be read at all is
            taken out and renamed. A later `distill precompute` makes both again.

    Raises:
        StoreError: there is no store, or, with drop, a writer is at work on it.
    """
    with StoreFolder(url) as folder, contextlib.ExitStack() as stack:
        indices = stack.enter_context(locked_indices(folder)) if drop else read_indices(folder)
        if not indices:
            raise StoreError(f"{folder.url} holds no store (no index.json)")
        problems: list[Problem] = []
        for name, index in indices.items():
            kept = []
            for entry in index.shards:
                mended, found = _check_shard(folder, entry, drop=drop)
                problems += found
                kept += mended
            fresh = replace(index, shards=tuple(kept))
            if drop and fresh != index:
                folder.publish(name, replace(fresh, finished=False).to_bytes())
        problems += _check_head(folder, next(iter(indices.values())))
    return problems


def _check_shard(
    folder: StoreFolder, entry: ShardEntry, *, drop: bool
) -> tuple[list[ShardEntry], list[Problem]]:
    try:
        path = folder.local_path(entry.name, sha256=entry.sha256)
        if path.stat().st_size == entry.num_bytes:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                    return [entry], []
        shard = Shard(path, entry, store=folder.url)
        shard.check_tables()
        corrupt = shard.corrupt_units()
    except (StoreError, FileNotFoundError) as error:
        if drop:
            with contextlib.suppress(FileNotFoundError):
                folder.rename(entry.name, f"{CORRUPT_PREFIX}{entry.name}")
        problem = Problem(file=entry.name, reason=str(error), num_units=entry.num_units)
        return [] if drop else [entry], [problem]
    new = {unit: reason for unit, reason in corrupt.items() if unit not in entry.dropped_units}
    problems = [
        Problem(file=entry.name, reason=f"unit {unit}: {reason}", num_units=1)
        for unit, reason in new.items()
    ]
    if not corrupt:
        reason = "its SHA-256 differs, although every record is whole"
        problems.append(Problem(file=entry.name, reason=reason, num_units=0))
    dropped = tuple(sorted({*entry.dropped_units, *new})) if drop else entry.dropped_units
    return [replace(entry, dropped_units=dropped)], problems


def _check_head(folder: StoreFolder, index: StoreIndex) -> Iterator[Problem]:
    if index.identity.targets.encoding != "hidden":
        return
    digest = index.identity.teacher.head_digest
    try:
        load_head(folder, digest)
    except (StoreError, KeyError) as error:
        yield Problem(file=head_name(digest), reason=str(error), num_units=0)
