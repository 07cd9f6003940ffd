"""Records out of the columns of a shard: what `columns` wrote, checked and read back."""

from collections.abc import Callable, Mapping

import numpy as np

from protos import codec
from student_trainer.store.columns import RAGGED, pieces_crc32c
from student_trainer.store.errors import CorruptStoreError
from student_trainer.store.format import RecordFormat
from student_trainer.store.ragged import PackedIds, unpack_ids
from student_trainer.store.records import StoredRecord

_Pieces = Mapping[str, np.ndarray]


class RecordDecoder:
    """Reads records of one shard at random; used by several threads at once.

    A record is a few tens of microseconds of work, so what can be found out once for a shard is.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], record_format: RecordFormat) -> None:
        """Prepares the columns of a shard whose tables were found right."""
        self._columns = columns
        self._format = record_format
        self._ragged = [
            (name, columns[name], offsets) for name, offsets in RAGGED.items() if name in columns
        ]
        self._offsets = {offsets: columns[offsets] for _, _, offsets in self._ragged}
        self._temperatures = np.asarray(record_format.temperatures, dtype="<f4")
        self._num_kept = _uniform_count(columns)
        decoders: Mapping[str, Callable[[_Pieces], codec.Distribution]] = {
            "hidden": self._hidden,
            "logits": self._logits,
            "top_k": self._top_k,
        }
        self._decode = decoders[record_format.encoding]

    def record(self, number: int) -> StoredRecord:
        """The record with this number. Values are views of the column, where they lie as sent.

        Raises:
            CorruptStoreError: it fails its checksum.
        """
        spans = {
            name: slice(offsets.item(number), offsets.item(number + 1))
            for name, offsets in self._offsets.items()
        }
        pieces = {name: column[spans[offsets]] for name, column, offsets in self._ragged}
        table = self._columns
        if pieces_crc32c(pieces.values()) != table["crc32c"].item(number):
            raise CorruptStoreError(
                f"record {number} (sequence {table['sequence_ids'][number]}, step "
                f"{table['steps'][number]}) fails its CRC-32C"
            )
        state = pieces["states"].astype("<i4")
        unmask_steps = pieces["unmask_steps"]
        targets = codec.StepTargets(
            sequence_id=table["sequence_ids"].item(number),
            step=table["steps"].item(number),
            time=table["times"].item(number),
            revision=self._format.revision,
            tokenizer_fingerprint=self._format.tokenizer_fingerprint,
            state=state,
            state_digest=table["state_digests"][number].tobytes(),
            unmask_steps=unmask_steps.astype("<i4") if len(unmask_steps) else None,
            num_forwards=table["nums_forwards"].item(number),
            positions=self._positions(pieces["positions"], spans["position_offsets"], state),
            distribution=self._decode(pieces),
        )
        return StoredRecord(
            targets=targets,
            t=table["ts"].item(number),
            num_maskable=table["nums_maskable"].item(number),
        )

    def _positions(self, explicit: np.ndarray, span: slice, state: np.ndarray) -> np.ndarray:
        if len(explicit) or span.start == span.stop:
            return explicit.astype("<i4")
        return np.flatnonzero(state == self._format.mask_token_id).astype("<i4")

    def _values(self, data: np.ndarray) -> codec.Values:
        return codec.Values(dtype=self._format.dtype, data=data)

    def _hidden(self, pieces: _Pieces) -> codec.Hidden:
        return codec.Hidden(values=self._values(pieces["hidden"]))

    def _logits(self, pieces: _Pieces) -> codec.Logits:
        return codec.Logits(values=self._values(pieces["logits"]))

    def _top_k(self, pieces: _Pieces) -> codec.TopK:
        counts_M = pieces["row_counts"]
        num_rows, num_kept = len(counts_M), self._num_kept
        if num_kept is None:
            row_offsets = np.zeros(num_rows + 1, dtype="<i4")
            np.cumsum(counts_M, dtype="<i4", out=row_offsets[1:])
        else:
            row_offsets = np.arange(0, (num_rows + 1) * num_kept, num_kept, dtype="<i4")
        normalizers_MT = pieces.get("log_normalizers")
        return codec.TopK(
            row_offsets=row_offsets,
            token_ids=unpack_ids(
                PackedIds(pieces["token_ids"], pieces["id_carries"]), counts_M, num_kept=num_kept
            ),
            log_probs=self._values(pieces["log_probs"]),
            temperatures=self._temperatures,
            log_normalizers=np.zeros((len(self._temperatures), num_rows), dtype="<f4")
            if normalizers_MT is None
            else normalizers_MT.T,
            tail_log_masses=pieces["tail_log_masses"].T,
        )


def _uniform_count(columns: Mapping[str, np.ndarray]) -> int | None:
    """K, where all rows of the shard hold as many ids, and at least one."""
    counts = columns.get("row_counts")
    if counts is None or not len(counts):
        return None
    num_kept = int(counts[0])
    return num_kept if num_kept and (counts == num_kept).all() else None
