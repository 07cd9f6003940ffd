"""A store as a source of targets: what a live teacher would answer, from disk."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from protos import codec
from student_trainer import losses, targets, wire
from student_trainer.store.errors import MissingTargetsError, StoreMismatchError
from student_trainer.store.head import load_head
from student_trainer.store.keys import score_keys, trajectory_key
from student_trainer.store.reader import StoreReader
from student_trainer.store.records import Unit
from student_trainer.teacher_head import ShardedTeacherHead

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreExpectations:
    """What a store must be of; None = anything."""

    revision: str | None = None
    tokenizer_fingerprint: str | None = None
    vocab_size: int | None = None
    mask_token_id: int | None = None

    def check(self, description: wire.TeacherDescription, *, store: str) -> None:
        """Refuses a store of something else, by name.

        Raises:
            StoreMismatchError: the first fact that differs.
        """
        for field in fields(self):
            expected, found = getattr(self, field.name), getattr(description, field.name)
            if expected is not None and expected != found:
                raise StoreMismatchError(
                    f"the store {store} was made with {field.name} = {found!r}, expected is "
                    f"{expected!r}; name another store, or precompute one for this teacher"
                )


class TargetStore:
    """Targets that were precomputed, found by the content of the question; for several threads.

    It never answers what it does not hold: a state that is missing is an error. While a writer is
    still at work, it waits for the state to come.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        expected: StoreExpectations | None = None,
        wait_s: float = 0.0,
        cache_folder: Path | None = None,
        head_shards: tuple[int, int] | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        """Opens a store.

        Args:
            url: folder or fsspec URL.
            temperature: the distillation temperature, one of those the store was made with.
            expected: what it must be of.
            wait_s: how long an unfinished store may bring nothing new before a state that is not
                in it is an error.
            cache_folder: keeps the copies of remote files; None = they go with the source.
            head_shards: as for `RemoteTeacher`.
            skip_corrupt: as for `StoreReader`.

        Raises:
            StoreError: it is none, or its own files contradict each other.
            StoreMismatchError: it is of something else than expected.
        """
        self.reader = StoreReader(url, cache_folder=cache_folder, skip_corrupt=skip_corrupt)
        self.identity = self.reader.identity
        self.description = self.identity.teacher
        (expected or StoreExpectations()).check(self.description, store=self.reader.url)
        self._temperature = temperature
        self._device = torch.device(device)
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._num_bytes = 0
        self._check_temperature()
        self._head: losses.TeacherHead | ShardedTeacherHead | None = None
        self.sharded_head: ShardedTeacherHead | None = None
        """The head, where ranks divide it: to be made whole around each step."""
        if self.identity.targets.encoding == "hidden":
            stored = load_head(self.reader.folder, self.description.head_digest)
            head = targets.to_teacher_head(stored, device=self._device)
            self._head = head
            if head_shards is not None:
                rank, world_size = head_shards
                self.sharded_head = ShardedTeacherHead(head, rank=rank, world_size=world_size)
                self._head = self.sharded_head

    def __enter__(self) -> "TargetStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counters(self) -> targets.TargetCounters:
        """Totals since it was opened."""
        return targets.TargetCounters(num_bytes=self._num_bytes)

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> list[codec.StepTargets]:
        """One record per state, in the order of the states.

        Raises:
            MissingTargetsError: the store does not hold a state.
            CorruptStoreError: a record is damaged.
        """
        keys = score_keys(
            states, teacher=self.description, clean=clean, times=times, positions=positions
        )
        records = []
        for key, sequence_id in zip(keys, sequence_ids, strict=True):
            unit = self.read(key, what=f"the state of sequence {sequence_id}")
            (record,) = unit.records
            records.append(replace(record.targets, sequence_id=sequence_id))
        return records

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        frozen: Sequence[np.ndarray],
        sequence_ids: Sequence[int],
        seed: int,
        steps: Sequence[int],
    ) -> list[codec.StepTargets]:
        """Records of the given steps of each trajectory, by sequence and then by step.

        Raises:
            MissingTargetsError: the store does not hold a trajectory.
            CorruptStoreError: a record is damaged.
        """
        sampler = self.identity.sampler
        if sampler is None:
            raise MissingTargetsError(
                f"the store {self.reader.url} holds no trajectories, only states that were scored; "
                "set distill.state_source=noised, or precompute trajectories"
            )
        records = []
        for start, frozen_L, sequence_id in zip(starts, frozen, sequence_ids, strict=True):
            key = trajectory_key(
                start,
                frozen=frozen_L,
                sequence_id=sequence_id,
                seed=seed,
                steps=steps,
                sampler=sampler,
                revision=self.description.revision,
            )
            unit = self.read(key, what=f"the trajectory of sequence {sequence_id}")
            records += [record.targets for record in unit.records]
        return records

    def to_loss_targets(self, records: Sequence[codec.StepTargets]) -> losses.Targets:
        """All positions of all records, in order, as the loss takes them."""
        return targets.to_loss_targets(
            records, head=self._head, temperature=self._temperature, device=self._device
        )

    def close(self) -> None:
        """Ends waits and removes copies of remote files; what was read stays valid."""
        self._closed.set()
        self.reader.close()

    def read(self, key: bytes, *, what: str) -> Unit:
        """The unit with this key, waited for where the store still grows.

        Raises:
            MissingTargetsError: it is not there and does not come.
        """
        deadline_s = time.monotonic() + self._wait_s
        while True:
            version = self.reader.version
            if (place := self.reader.find(key)) is not None:
                break
            # Looked at before the shards: what a writer finished with is then seen below.
            finished = self.reader.finished
            self.reader.refresh()
            # Another thread may have found, since `find`, what this one's look did not bring.
            if self.reader.version != version:
                deadline_s = time.monotonic() + self._wait_s
                continue
            if finished or time.monotonic() >= deadline_s or self._closed.wait(_LOOK_EVERY_S):
                raise self._missing(what)
        unit = place.read()
        self.count(unit)
        return unit

    def count(self, unit: Unit) -> None:
        """Adds to the counters what was read past `read`."""
        with self._lock:
            self._num_bytes += unit.num_bytes

    def _missing(self, what: str) -> MissingTargetsError:
        state = "is finished" if self.reader.finished else "is not finished, and nothing new came"
        return MissingTargetsError(
            f"the store {self.reader.url} does not hold {what}; it {state}. Precompute with the "
            "settings of this run (data, seed, batch size, distill.*), finish an interrupted "
            "`distill precompute` by running it again, or train live: nothing is trained without "
            "its targets"
        )

    def _check_temperature(self) -> None:
        spec = self.identity.targets
        known = [float(np.float32(value)) for value in spec.temperatures]
        if spec.encoding == "top_k" and float(np.float32(self._temperature)) not in known:
            raise StoreMismatchError(
                f"the store {self.reader.url} was made for the distillation temperatures "
                f"{list(spec.temperatures)}, not {self._temperature}: a truncated distribution "
                "cannot be tempered afterwards; set distill.temperature, or precompute again"
            )
