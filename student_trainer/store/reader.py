"""The reader: units by their keys, at random, while a writer may still add to the store."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from student_trainer.store.errors import CorruptStoreError, StoreError
from student_trainer.store.folder import StoreFolder
from student_trainer.store.identity import StoreIdentity
from student_trainer.store.index import (
    ShardEntry,
    StoreIndex,
    all_finished,
    count,
    index_contents,
    parse_indices,
)
from student_trainer.store.keys import KEY_BYTES
from student_trainer.store.records import Unit
from student_trainer.store.shard import Shard

logger = logging.getLogger(__name__)

_HEAD_BYTES = 8


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where a unit lies."""

    shard: Shard
    number: int

    def read(self) -> Unit:
        """The unit; CorruptStoreError where it is not what was written."""
        return self.shard.unit(self.number)


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Keys in order, with the places of their units."""

    heads: np.ndarray
    """[U] uint64, ascending: the first half of each key, which as a hash tells nearly all apart."""
    keys: np.ndarray
    """[U, 16] uint8."""
    shards: np.ndarray
    """[U] index of the shard."""
    units: np.ndarray
    """[U] number of the unit in it."""

    @classmethod
    def of(cls, shards: list[Shard], column: str) -> "_Places":
        keys = [np.zeros((0, KEY_BYTES), dtype=np.uint8)]
        shard_numbers, units = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for number, shard in enumerate(shards):
            column_keys = getattr(shard, column)
            kept = np.setdiff1d(np.arange(len(column_keys)), shard.entry.dropped_units)
            kept = kept.astype(np.int64)
            keys.append(column_keys[kept])
            units.append(kept)
            shard_numbers.append(np.full(len(kept), number, dtype=np.int64))
        all_keys = np.concatenate(keys)
        heads = np.ascontiguousarray(all_keys[:, :_HEAD_BYTES]).view("<u8").reshape(-1)
        order = np.argsort(heads, kind="stable")
        return cls(
            heads[order],
            all_keys[order],
            np.concatenate(shard_numbers)[order],
            np.concatenate(units)[order],
        )

    def find(self, key: bytes) -> Iterator[int]:
        """The entries with this key, in the order in which they were written."""
        head = np.uint64(int.from_bytes(key[:_HEAD_BYTES], "little"))
        entry = int(self.heads.searchsorted(head))
        while entry < len(self.heads) and self.heads[entry] == head:
            if self.keys[entry].tobytes() == key:
                yield entry
            entry += 1


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """The store as it was at one moment."""

    indices: Mapping[str, StoreIndex]
    shards: list[Shard]
    by_key: _Places
    by_example: _Places
    version: int = 0
    """Grows with the shards."""


class StoreReader:
    """Reads a store; any number of processes may, in any order, with several threads each."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        cache_folder: Path | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        """Opens it.

        Args:
            url: folder or fsspec URL.
            cache_folder: keeps the copies of remote files; None = they go with the reader.
            skip_corrupt: leave shards out, with a warning, of which nothing can be read. A damaged
                record is an error at its own read in any case.

        Raises:
            StoreError: there is no store, or its files contradict each other.
            CorruptStoreError: a shard is missing, cut, or its tables are damaged.
        """
        self.folder = StoreFolder(url, cache_folder=cache_folder)
        self._skip_corrupt = skip_corrupt
        self._lock = threading.Lock()
        self._contents = index_contents(self.folder)
        self._snapshot = self._parse(self._contents, None)
        self.identity: StoreIdentity = next(iter(self._snapshot.indices.values())).identity

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes copies of remote files."""
        self.folder.close()

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.folder.url

    @property
    def finished(self) -> bool:
        """True where its writers did all they were asked to."""
        return all_finished(self._snapshot.indices)

    @property
    def shards(self) -> list[Shard]:
        """The shards, in the order of their names."""
        return list(self._snapshot.shards)

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards as the indices name them."""
        return [shard.entry for shard in self._snapshot.shards]

    @property
    def counts(self) -> dict[str, int]:
        """Totals over all shards."""
        return count(self.entries)

    def __len__(self) -> int:
        """Units."""
        return len(self._snapshot.by_key.keys)

    @property
    def version(self) -> int:
        """Another number after each `refresh`, of whichever thread, that brought shards."""
        return self._snapshot.version

    def refresh(self) -> bool:
        """Looks what writers added; True where there are more shards now."""
        with self._lock:
            contents = index_contents(self.folder)
            # Several threads look several times a second, and mostly there is nothing new.
            if contents == self._contents:
                return False
            before = self._snapshot
            self._snapshot = self._parse(contents, before)
            self._contents = contents
            return self._snapshot.version != before.version

    def find(self, key: bytes) -> UnitPlace | None:
        """Where the unit with this key lies; None where it is not there (yet)."""
        snapshot = self._snapshot
        return next(self._places(snapshot, snapshot.by_key, key), None)

    def find_example(self, example_key: bytes) -> list[UnitPlace]:
        """Where the units made from a clean sequence lie, in the order they were written."""
        snapshot = self._snapshot
        return list(self._places(snapshot, snapshot.by_example, example_key))

    def places(self) -> Iterator[UnitPlace]:
        """All units, in the order they were written."""
        for shard in self._snapshot.shards:
            for number in range(shard.entry.num_units):
                if number not in shard.entry.dropped_units:
                    yield UnitPlace(shard, number)

    @staticmethod
    def _places(snapshot: _Snapshot, places: _Places, key: bytes) -> Iterator[UnitPlace]:
        for entry in places.find(key):
            yield UnitPlace(snapshot.shards[places.shards.item(entry)], places.units.item(entry))

    def _parse(self, contents: Mapping[str, bytes], before: _Snapshot | None) -> _Snapshot:
        indices = parse_indices(contents, where=self.folder.url)
        if not indices:
            raise StoreError(
                f"{self.folder.url} holds no store (no index.json); make one with "
                "`distill precompute --output_path ...`, or name another folder"
            )
        # One shard may be in two indices for the moment in which they are merged.
        entries = {entry.name: entry for index in indices.values() for entry in index.shards}
        known = {} if before is None else {shard.entry: shard for shard in before.shards}
        shards = [
            known.get(entry)
            or Shard(
                self.folder.local_path(entry.name, sha256=entry.sha256),
                entry,
                store=self.folder.url,
            )
            for _, entry in sorted(entries.items())
        ]
        if self._skip_corrupt:
            shards = [shard for shard in shards if _is_readable(shard)]
        if before is not None and shards == before.shards:
            return replace(before, indices=indices)
        return _Snapshot(
            indices=indices,
            shards=shards,
            by_key=_Places.of(shards, "unit_keys"),
            by_example=_Places.of(shards, "example_keys"),
            version=0 if before is None else before.version + 1,
        )


def _is_readable(shard: Shard) -> bool:
    try:
        shard.check_tables()
    except CorruptStoreError as error:
        logger.warning("skipped shard=%s error=%s", shard.entry.name, error)
        return False
    return True
