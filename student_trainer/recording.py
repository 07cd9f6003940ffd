"""A source of targets that asks for what a store misses, and hands over what is to be stored.

The states of a precompute are made by the very code that makes them in a training run, which asks
this source: so they cannot differ.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from protos import codec
from student_trainer import losses, wire
from student_trainer.store.keys import NO_KEY, score_keys, trajectory_key
from student_trainer.store.reader import StoreReader
from student_trainer.store.records import StoredRecord, Unit
from student_trainer.targets import RemoteTeacher, TargetCounters

_Questions = dict[int, bytes]


class RecordingTeacher:
    """A `TargetSource` for the states of one micro-step; used once, by one thread."""

    def __init__(
        self,
        remote: RemoteTeacher,
        store: StoreReader,
        *,
        example_of: Callable[[int], bytes] | None = None,
    ) -> None:
        """Starts with nothing recorded.

        Args:
            remote: asked for what is missing.
            store: what is there already.
            example_of: the key of the clean sequence behind a sequence id; None = not named.
        """
        self._remote = remote
        self._store = store
        self._example_of = example_of
        self._units: list[tuple[bytes, int, list[codec.StepTargets]]] = []
        self._last: list[codec.StepTargets] = []

    @property
    def description(self) -> wire.TeacherDescription:
        """What the teacher is."""
        return self._remote.description

    @property
    def counters(self) -> TargetCounters:
        """Totals of the teacher's client."""
        return self._remote.counters

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> list[codec.StepTargets]:
        """One record per state, in the order of the states."""
        keys = score_keys(
            states, teacher=self.description, clean=clean, times=times, positions=positions
        )

        def ask(rows: list[int]) -> list[codec.StepTargets]:
            return self._remote.score(
                [states[row] for row in rows],
                sequence_ids=[sequence_ids[row] for row in rows],
                clean=None if clean is None else [clean[row] for row in rows],
                times=None if times is None else [times[row] for row in rows],
                positions=None if positions is None else [positions[row] for row in rows],
            )

        return self._answer(dict(zip(sequence_ids, keys, strict=True)), ask)

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        frozen: Sequence[np.ndarray],
        sequence_ids: Sequence[int],
        seed: int,
        steps: Sequence[int],
    ) -> list[codec.StepTargets]:
        """Records of the given steps of each trajectory, by sequence and then by step."""
        sampler = self._remote.sampler
        assert sampler is not None
        keys = {
            sequence_id: trajectory_key(
                start,
                frozen=frozen_L,
                sequence_id=sequence_id,
                seed=seed,
                steps=steps,
                sampler=sampler,
                revision=self.description.revision,
            )
            for start, frozen_L, sequence_id in zip(starts, frozen, sequence_ids, strict=True)
        }

        def ask(rows: list[int]) -> list[codec.StepTargets]:
            return self._remote.sample(
                [starts[row] for row in rows],
                frozen=[frozen[row] for row in rows],
                sequence_ids=[sequence_ids[row] for row in rows],
                seed=seed,
                steps=steps,
            )

        return self._answer(keys, ask)

    def to_loss_targets(self, records: Sequence[codec.StepTargets]) -> losses.Targets:
        """A stand-in without a vocabulary: nothing is trained here."""
        return losses.LogitsTargets(torch.empty(sum(len(r.positions) for r in records), 0))

    def close(self) -> None:
        """Breaks what is in flight."""
        self._remote.close()

    def units(self, t_R: Tensor, num_maskable_R: Tensor) -> list[Unit]:
        """What is to be stored: what was asked for and was not in the store.

        Args:
            t_R: [R] mask probability of each record of the last answer, in its order,
            num_maskable_R: and its number of positions that could have been masked.
        """
        facts = {
            id(record): (float(t), int(num_maskable))
            for record, t, num_maskable in zip(self._last, t_R, num_maskable_R, strict=True)
        }
        return [
            Unit(
                key=key,
                example_key=NO_KEY if self._example_of is None else self._example_of(sequence_id),
                records=tuple(
                    StoredRecord(
                        targets=record, t=facts[id(record)][0], num_maskable=facts[id(record)][1]
                    )
                    for record in records
                ),
            )
            for key, sequence_id, records in self._units
        ]

    def _answer(
        self, keys: _Questions, ask: Callable[[list[int]], list[codec.StepTargets]]
    ) -> list[codec.StepTargets]:
        """Answers from the store and, for the rest, from the teacher."""
        found: dict[int, list[codec.StepTargets]] = {}
        missing = []
        for row, (sequence_id, key) in enumerate(keys.items()):
            place = self._store.find(key)
            if place is None:
                missing.append(row)
            else:
                found[sequence_id] = [record.targets for record in place.read().records]
        sequence_ids = list(keys)
        fresh: dict[int, list[codec.StepTargets]] = {sequence_ids[row]: [] for row in missing}
        for record in ask(missing) if missing else []:
            fresh[record.sequence_id].append(record)
        self._units += [(keys[name], name, records) for name, records in fresh.items()]
        both = found | fresh
        self._last = [record for sequence_id in keys for record in both[sequence_id]]
        return self._last
