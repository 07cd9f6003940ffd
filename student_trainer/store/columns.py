"""Units as columns: the arrays of one shard, smaller than payloads and losslessly the same.

Columns have one entry a unit, one entry a record, or are ragged: flat data cut by offsets. What all
records share is in the format; what follows from other columns is left out:

- positions, where they are exactly the masked ones of the state;
- log-normalisers, where all are 0 (temperature 1);
- integers in the narrowest dtype that holds them, ids of TOP_K as 16 bits and carries.

With a vocabulary of 151,936, TOP_K 64 in float16 then takes 128 bytes of log-probabilities, 128 of
ids, 2 of carries, 1 for the count and 4 for the tail: 263 a position, and the states beside it.
Packed at 18 bits the ids would be 144 bytes, and several times slower to read; Elias-Fano would
make them 105 and slower still.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from protos import codec, parts
from student_trainer.store.errors import StoreError
from student_trainer.store.format import RecordFormat
from student_trainer.store.ragged import narrow, offsets_of, pack_ids
from student_trainer.store.records import StoredRecord, Unit

_VALUES: Mapping[str, str] = {"hidden": "hidden", "logits": "logits", "top_k": "log_probs"}

RAGGED: Mapping[str, str] = {
    "states": "token_offsets",
    "unmask_steps": "unmask_offsets",
    "positions": "explicit_offsets",
    "hidden": "position_offsets",
    "logits": "position_offsets",
    "row_counts": "position_offsets",
    "id_carries": "position_offsets",
    "log_normalizers": "position_offsets",
    "tail_log_masses": "position_offsets",
    "token_ids": "kept_offsets",
    "log_probs": "kept_offsets",
}
"""Each ragged column with the column of its offsets."""

TABLE = (
    "unit_keys",
    "example_keys",
    "record_offsets",
    "sequence_ids",
    "steps",
    "times",
    "ts",
    "nums_maskable",
    "nums_forwards",
    "state_digests",
    "token_offsets",
    "unmask_offsets",
    "explicit_offsets",
    "position_offsets",
    "kept_offsets",
    "crc32c",
)
"""The columns that are not ragged, some of which not every encoding has."""


def to_columns(units: Sequence[Unit], record_format: RecordFormat) -> dict[str, np.ndarray]:
    """The columns of one shard.

    Raises:
        StoreError: a record has no state or another format.
    """
    records = [record for unit in units for record in unit.records]
    _check(records, record_format)
    columns = _unit_columns(units) | _record_columns(records)
    columns |= _state_columns([record.targets for record in records], record_format)
    columns |= _distribution_columns([record.targets for record in records], record_format)
    columns["crc32c"] = np.array(
        [record_crc32c(columns, number) for number in range(len(records))], dtype="<u4"
    )
    return columns


def bf16_columns(record_format: RecordFormat) -> frozenset[str]:
    """The columns whose uint16 numbers are bfloat16."""
    if record_format.dtype != "bf16":
        return frozenset()
    return frozenset({_VALUES[record_format.encoding]})


def table_crc32c(columns: Mapping[str, np.ndarray]) -> int:
    """Checksum of the columns that are not ragged, the checksums of the records among them."""
    crc = 0
    for name in TABLE:
        if name in columns:
            crc = parts.crc32c(np.ascontiguousarray(columns[name]).reshape(-1), start=crc)
    return crc


def record_crc32c(columns: Mapping[str, np.ndarray], number: int) -> int:
    """Checksum of a record's pieces of the ragged columns."""
    return pieces_crc32c(
        columns[name][slice(*columns[offsets][number : number + 2])]
        for name, offsets in RAGGED.items()
        if name in columns
    )


def pieces_crc32c(pieces: Iterable[np.ndarray]) -> int:
    """Checksum of arrays, one after another; of the pieces of a record in the order of RAGGED."""
    crc = 0
    for piece in pieces:
        if piece.size:
            crc = parts.crc32c(piece, start=crc)
    return crc


def _check(records: Sequence[StoredRecord], record_format: RecordFormat) -> None:
    for record in records:
        targets = record.targets
        found = RecordFormat.of(targets, mask_token_id=record_format.mask_token_id)
        difference = record_format.difference(found)
        if targets.state is None:
            difference = "it has no state"
        if difference is not None:
            raise StoreError(
                f"the targets of sequence {targets.sequence_id} at step {targets.step} do not "
                f"belong into this store: {difference}"
            )


def _unit_columns(units: Sequence[Unit]) -> dict[str, np.ndarray]:
    def keys(names: list[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1)

    return {
        "unit_keys": keys([unit.key for unit in units]),
        "example_keys": keys([unit.example_key for unit in units]),
        "record_offsets": offsets_of([len(unit.records) for unit in units]),
    }


def _record_columns(records: Sequence[StoredRecord]) -> dict[str, np.ndarray]:
    all_targets = [record.targets for record in records]
    digests = b"".join(targets.state_digest for targets in all_targets)
    return {
        "sequence_ids": np.array([targets.sequence_id for targets in all_targets], dtype="<i8"),
        "steps": np.array([targets.step for targets in all_targets], dtype="<i4"),
        "times": np.array([targets.time for targets in all_targets], dtype="<f8"),
        "ts": np.array([record.t for record in records], dtype="<f4"),
        "nums_maskable": np.array([record.num_maskable for record in records], dtype="<i4"),
        "nums_forwards": np.array([targets.num_forwards for targets in all_targets], dtype="<i4"),
        "state_digests": np.frombuffer(digests, dtype=np.uint8).reshape(len(records), -1)
        if records
        else np.zeros((0, 16), dtype=np.uint8),
    }


def _state_columns(
    all_targets: Sequence[codec.StepTargets], record_format: RecordFormat
) -> dict[str, np.ndarray]:
    states: list[np.ndarray] = []
    unmask_steps: list[np.ndarray] = []
    explicit: list[np.ndarray] = []
    nothing = np.zeros(0, dtype="<i4")
    for targets in all_targets:
        assert targets.state is not None
        states.append(targets.state)
        unmask_steps.append(nothing if targets.unmask_steps is None else targets.unmask_steps)
        masked = np.flatnonzero(targets.state == record_format.mask_token_id)
        explicit.append(nothing if np.array_equal(masked, targets.positions) else targets.positions)
    return {
        "states": narrow(_concatenate(states, "<i4")),
        "token_offsets": offsets_of([len(state) for state in states]),
        "unmask_steps": narrow(_concatenate(unmask_steps, "<i4")),
        "unmask_offsets": offsets_of([len(steps) for steps in unmask_steps]),
        "positions": narrow(_concatenate(explicit, "<i4")),
        "explicit_offsets": offsets_of([len(positions) for positions in explicit]),
        "position_offsets": offsets_of([len(targets.positions) for targets in all_targets]),
    }


def _distribution_columns(
    all_targets: Sequence[codec.StepTargets], record_format: RecordFormat
) -> dict[str, np.ndarray]:
    name = _VALUES[record_format.encoding]
    distributions = [targets.distribution for targets in all_targets]
    dense = [part.values.data for part in distributions if not isinstance(part, codec.TopK)]
    if record_format.encoding != "top_k":
        # A record without positions may not know its own width; where none has any, the width is
        # kept all the same: the rows of such a shard are joined to those of others.
        width = max((part.shape[1] for part in dense), default=0)
        wide = [part for part in dense if len(part)]
        return {name: np.concatenate([np.zeros((0, width), dtype=_dtype(dense)), *wide])}
    top_k = [part for part in distributions if isinstance(part, codec.TopK)]
    return _top_k_columns(top_k, record_format)


def _top_k_columns(
    top_k: Sequence[codec.TopK], record_format: RecordFormat
) -> dict[str, np.ndarray]:
    counts_M = _concatenate([np.diff(part.row_offsets) for part in top_k], "<i4")
    token_ids = _concatenate([part.token_ids for part in top_k], "<i4")
    packed = pack_ids(token_ids, offsets_of(counts_M))
    width = len(record_format.temperatures)
    by_position = {
        # Transposed: what belongs to a position then lies together, and so does a record.
        name: np.concatenate(
            [np.zeros((0, width), dtype="<f4"), *(getattr(part, name).T for part in top_k)]
        )
        for name in ("log_normalizers", "tail_log_masses")
    }
    if not by_position["log_normalizers"].view("<u4").any():
        del by_position["log_normalizers"]
    log_probs = [part.log_probs.data for part in top_k]
    return by_position | {
        "row_counts": narrow(counts_M),
        "id_carries": packed.carries,
        "token_ids": packed.low,
        "log_probs": np.concatenate(log_probs) if log_probs else np.zeros(0, dtype="<f2"),
        "kept_offsets": offsets_of([len(part.token_ids) for part in top_k]),
    }


def _concatenate(pieces: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *pieces])


def _dtype(arrays: Sequence[np.ndarray]) -> np.dtype:
    return arrays[0].dtype if arrays else np.dtype("<f4")
