"""Makes one store of several, or one index of those that several writers left in a folder."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from student_trainer.store.errors import StoreError
from student_trainer.store.folder import StoreFolder
from student_trainer.store.index import (
    StoreIndex,
    WorkShare,
    all_finished,
    locked_indices,
    read_indices,
)


def merge(
    target: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]] = ()
) -> StoreIndex:
    """Copies the shards of the sources into the target and leaves it with one index.

    The sources stay as they are. A shard that is there already (by its SHA-256) is not copied
    again, so a merge that was interrupted is simply made again.

    Returns:
        The target's index.

    Raises:
        StoreMismatchError: the stores are of different teachers or questions.
        StoreError: a source is no store, or a writer is at work on the target.
    """
    whole = WorkShare()
    with StoreFolder(target) as folder, contextlib.ExitStack() as stack:
        own = stack.enter_context(locked_indices(folder, whole.index_name))
        others = []
        for source in sources:
            other = stack.enter_context(StoreFolder(source))
            indices = read_indices(other)
            if not indices:
                raise StoreError(f"{other.url} holds no store (no index.json)")
            others.append((other, indices))
        merged = _merged(folder, own, others)
        for other, indices in others:
            merged = _copy(folder, merged, other, indices, whole)
        folder.publish(whole.index_name, merged.to_bytes())
        for name in own.keys() - {whole.index_name}:
            folder.remove(name)
    return merged


def _merged(
    folder: StoreFolder,
    own: dict[str, StoreIndex],
    others: Sequence[tuple[StoreFolder, dict[str, StoreIndex]]],
) -> StoreIndex:
    """The target's own shards under one index; finished where all shares, wherever, are."""
    everything = dict(own)
    for _, indices in others:
        for name, index in indices.items():
            done = index.finished or (name in everything and everything[name].finished)
            everything[name] = replace(index, finished=done)
    if not everything:
        raise StoreError(f"{folder.url} holds no store (no index.json), and no other was given")
    first = next(iter(everything.values()))
    for place, indices in ((folder, own), *others):
        for index in indices.values():
            first.identity.check_same(index.identity, where=folder.url, whose=place.url)
    shards = {entry.name: entry for index in own.values() for entry in index.shards}
    return StoreIndex(
        identity=first.identity,
        shards=tuple(entry for _, entry in sorted(shards.items())),
        finished=all_finished(everything),
    )


def _copy(
    folder: StoreFolder,
    merged: StoreIndex,
    other: StoreFolder,
    indices: dict[str, StoreIndex],
    whole: WorkShare,
) -> StoreIndex:
    known = {entry.sha256 for entry in merged.shards}
    taken = {entry.name for entry in merged.shards} | set(folder.names())
    number = whole.next_number(taken)
    for index in indices.values():
        for entry in index.shards:
            if entry.sha256 in known:
                continue
            new_name = whole.shard_name(number)
            number += 1
            folder.copy_from(other, entry.name, new_name=new_name)
            merged = merged.with_shard(replace(entry, name=new_name))
            known.add(entry.sha256)
    for name in other.names():
        if name.startswith("head-") and name not in taken:
            folder.copy_from(other, name, new_name=name, is_locked=False)
    return merged
