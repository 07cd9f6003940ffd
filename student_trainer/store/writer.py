"""The shard writer: units in, whole shards out."""

import contextlib
import os
import time
from dataclasses import replace

from student_trainer.store.errors import StoreMismatchError
from student_trainer.store.folder import StoreFolder
from student_trainer.store.format import RecordFormat
from student_trainer.store.identity import StoreIdentity
from student_trainer.store.index import StoreIndex, WorkShare, read_indices
from student_trainer.store.records import Unit
from student_trainer.store.shard import build_shard

SHARD_BYTES = 64 * 2**20
SHARD_AGE_S = 300.0


class StoreWriter:
    """Collects units and publishes them a shard at a time; one thread's.

    A shard is written, had on the disk and renamed, and then named in the index in the same way. A
    process that dies loses what it has not published yet: the open shard. Leaving the context
    publishes it too.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        identity: StoreIdentity,
        *,
        share: WorkShare | None = None,
        max_shard_bytes: int = SHARD_BYTES,
        max_shard_age_s: float = SHARD_AGE_S,
    ) -> None:
        """Prepares to write; `with` begins.

        Args:
            url: folder or fsspec URL; made where it is missing, continued where it is a store.
            share: of the writer, where several share the work.
            max_shard_bytes: a shard is closed when its units take as much in memory,
            max_shard_age_s: or when its first unit is so old.
        """
        self._url = os.fspath(url)
        self._identity = identity
        self._share = share or WorkShare()
        self._max_shard_bytes = max_shard_bytes
        self._max_shard_age_s = max_shard_age_s
        self._units: list[Unit] = []
        self._open_bytes = 0
        self._opened_s = 0.0
        self._number = 0
        self._index = StoreIndex(identity=identity)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StoreWriter":
        """Begins or continues the index of this writer.

        Raises:
            StoreMismatchError: the folder holds targets of another teacher or question.
            StoreError: another process is the same writer.
        """
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(StoreFolder(self._url))
            stack.enter_context(self._folder.lock(self._share.index_name))
            indices = read_indices(self._folder)
            for index in indices.values():
                index.identity.check_same(self._identity, where=self._url, whose="this run")
            self._index = indices.get(self._share.index_name, self._index)
            self._index = replace(self._index, finished=False)
            # No shard is ever written over: not a corrupt one, nor one that a merge has taken.
            listed = [entry.name for entry in self._index.shards]
            self._number = self._share.next_number(listed + self._folder.names())
            self._publish_index()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self.flush()

    @property
    def counts(self) -> dict[str, int]:
        """Totals of what this writer published, in earlier runs too."""
        return self._index.counts()

    def add(self, unit: Unit) -> None:
        """Takes a unit; publishes the open shard when it is full or old.

        Raises:
            StoreMismatchError: a record is of another teacher than the store.
        """
        for record in unit.records:
            self._check(record.targets.revision, record.targets.tokenizer_fingerprint)
        now_s = time.monotonic()
        if not self._units:
            self._opened_s = now_s
        self._units.append(unit)
        self._open_bytes += unit.num_bytes
        if (
            self._open_bytes >= self._max_shard_bytes
            or now_s - self._opened_s >= self._max_shard_age_s
        ):
            self.flush()

    def flush(self) -> None:
        """Publishes the open shard, if there is anything in it."""
        if not self._units:
            return
        name = self._share.shard_name(self._number)
        self._number += 1
        content, entry = build_shard(self._units, self._format(), name=name)
        self._folder.publish(name, content)
        self._index = self._index.with_shard(entry)
        self._publish_index()
        self._units, self._open_bytes = [], 0

    def finish(self) -> None:
        """Publishes the open shard and says that this writer's share is done."""
        self.flush()
        self._index = replace(self._index, finished=True)
        self._publish_index()

    def _publish_index(self) -> None:
        self._folder.publish(self._share.index_name, self._index.to_bytes())

    def _format(self) -> RecordFormat:
        identity = self._identity
        for unit in self._units:
            for record in unit.records:
                return RecordFormat.of(record.targets, mask_token_id=identity.teacher.mask_token_id)
        # Only trajectories that were over before they began: nothing has a dtype.
        return RecordFormat(
            revision=identity.teacher.revision,
            tokenizer_fingerprint=identity.teacher.tokenizer_fingerprint,
            mask_token_id=identity.teacher.mask_token_id,
            encoding=identity.targets.encoding,
            dtype="f32",
        )

    def _check(self, revision: str, tokenizer_fingerprint: str) -> None:
        teacher = self._identity.teacher
        for name, value in (
            ("revision", revision),
            ("tokenizer_fingerprint", tokenizer_fingerprint),
        ):
            if value != getattr(teacher, name):
                raise StoreMismatchError(
                    f"the store {self._url} has {name} = {getattr(teacher, name)!r}, a record "
                    f"{value!r}; targets of two teachers are never mixed"
                )
