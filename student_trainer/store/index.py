"""The index: what a store is and which shards it has; one file for each writer."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from student_trainer.store.errors import CorruptStoreError, StoreError
from student_trainer.store.folder import StoreFolder
from student_trainer.store.identity import StoreIdentity

FORMAT = "dllm-distill target store"
VERSION = 1
CORRUPT_PREFIX = "corrupt-"
"""Begins the name of a shard that was taken out of its index."""
_INDEX_NAME = re.compile(r"index(-(?P<number>\d+)-of-(?P<total>\d+))?\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkShare:
    """Which share of the work a writer has, and the names of its files."""

    number: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.total:
            raise ValueError(
                f"shard {self.number}/{self.total} is none of the shards 0 to {self.total - 1}"
            )

    @classmethod
    def parse(cls, text: str) -> "WorkShare":
        """Reads `i/n`, i from 0."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"shard must be i/n with i from 0, such as 0/4, got {text!r}")
        return cls(number=int(match[1]), total=int(match[2]))

    @property
    def index_name(self) -> str:
        """The writer's index file."""
        return f"index{self._suffix}.json"

    def shard_name(self, number: int) -> str:
        """The writer's shard with this number."""
        return f"shard{self._suffix}-{number:05}.safetensors"

    def next_number(self, names: Iterable[str]) -> int:
        """After the largest number among files of the writer, those taken out as corrupt too."""
        pattern = re.compile(rf"({CORRUPT_PREFIX})?shard{self._suffix}-(?P<number>\d+)\..*")
        matches = map(pattern.fullmatch, names)
        return max((int(match["number"]) + 1 for match in matches if match), default=0)

    @property
    def _suffix(self) -> str:
        return "" if self.total == 1 else f"-{self.number:03}-of-{self.total:03}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard, as its index knows it."""

    name: str
    num_bytes: int
    sha256: str
    table_crc32c: int
    """See `columns.table_crc32c`."""
    num_units: int
    num_records: int
    num_positions: int
    dropped_units: tuple[int, ...] = ()
    """Units that were found corrupt and given up: as if they were not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreIndex:
    """The content of one index file."""

    identity: StoreIdentity
    shards: tuple[ShardEntry, ...] = ()
    finished: bool = False
    """True once the writer did its whole share."""

    def with_shard(self, entry: ShardEntry) -> "StoreIndex":
        """The index with one more shard."""
        return replace(self, shards=(*self.shards, entry))

    def counts(self) -> dict[str, int]:
        """Totals over the shards."""
        return count(self.shards)

    def to_bytes(self) -> bytes:
        """The file."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            **self.identity.to_json(),
            "finished": self.finished,
            "counts": self.counts(),
            "shards": [asdict(entry) for entry in self.shards],
        }
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> "StoreIndex":
        """Reads a file.

        Raises:
            CorruptStoreError: it is no JSON object or a field is wrong.
            StoreError: it is something else, or of another version.
        """
        try:
            values: Mapping[str, Any] = json.loads(content)
            found = (values.get("format"), values.get("version"))
        except (ValueError, AttributeError) as error:
            raise CorruptStoreError(f"{where} is no index of a store: {error}") from error
        if found != (FORMAT, VERSION):
            raise StoreError(
                f"{where} has format {found[0]!r} version {found[1]!r}, this program reads "
                f"{FORMAT!r} version {VERSION}"
            )
        try:
            return cls(
                identity=StoreIdentity.from_json(values),
                shards=tuple(_entry(entry) for entry in values["shards"]),
                finished=bool(values["finished"]),
            )
        except (KeyError, TypeError) as error:
            raise CorruptStoreError(f"{where} is damaged: {error!r}") from error


def count(shards: Sequence[ShardEntry]) -> dict[str, int]:
    """Totals over shards."""
    names = ("num_units", "num_records", "num_positions", "num_bytes")
    totals = {name: sum(getattr(entry, name) for entry in shards) for name in names}
    return totals | {"num_dropped_units": sum(len(entry.dropped_units) for entry in shards)}


def index_names(folder: StoreFolder) -> list[str]:
    """The index files of a folder, sorted."""
    return [name for name in folder.names() if _INDEX_NAME.fullmatch(name)]


@contextlib.contextmanager
def locked_indices(folder: StoreFolder, *names: str) -> Iterator[dict[str, StoreIndex]]:
    """All indices of a folder, while no writer can add to them; to change them.

    They are read under their locks: a writer may have finished since they were listed.

    Args:
        names: of indices that are locked even if they are not there.

    Raises:
        StoreError: a writer is at work.
        StoreMismatchError: as in `read_indices`.
    """
    with contextlib.ExitStack() as stack:
        locked: set[str] = set()
        while wanted := {*names, *index_names(folder)} - locked:
            for name in sorted(wanted):
                stack.enter_context(folder.lock(name))
            locked |= wanted
        yield read_indices(folder)


def read_indices(folder: StoreFolder) -> dict[str, StoreIndex]:
    """All indices of a folder by their names; none where there is no store.

    Raises:
        StoreMismatchError: they are of different teachers or questions.
    """
    return parse_indices(index_contents(folder), where=folder.url)


def index_contents(folder: StoreFolder) -> dict[str, bytes]:
    """The index files of a folder by their names, unread."""
    contents = {}
    for name in index_names(folder):
        # One may be merged away since it was listed.
        with contextlib.suppress(FileNotFoundError):
            contents[name] = folder.read(name)
    return contents


def parse_indices(contents: Mapping[str, bytes], *, where: str) -> dict[str, StoreIndex]:
    """Reads the index files of the folder `where`; errors as in `read_indices`."""
    found = {
        name: StoreIndex.from_bytes(content, where=f"{where}/{name}")
        for name, content in contents.items()
    }
    first: StoreIndex | None = None
    for name, index in found.items():
        if first is not None:
            first.identity.check_same(index.identity, where=where, whose=name)
        first = first or index
    return found


def all_finished(indices: Mapping[str, StoreIndex]) -> bool:
    """True where a whole pass was done: by one writer, or by all n of those that shared it."""
    whole = WorkShare().index_name
    if whole in indices and indices[whole].finished:
        return True
    done = [_match(name) for name, index in indices.items() if name != whole and index.finished]
    shares = {(int(match["number"]), int(match["total"])) for match in done}
    return any(
        all((number, total) in shares for number in range(total))
        for total in {total for _, total in shares}
    )


def _match(name: str) -> re.Match[str]:
    match = _INDEX_NAME.fullmatch(name)
    assert match is not None
    return match


def _entry(values: Mapping[str, Any]) -> ShardEntry:
    known = {field.name: values[field.name] for field in fields(ShardEntry)}
    return ShardEntry(**known | {"dropped_units": tuple(known["dropped_units"])})
