"""One shard: a file of units, made whole in memory, read by memory map."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from student_trainer.store import columns, safetensors_file
from student_trainer.store.decoder import RecordDecoder
from student_trainer.store.errors import CorruptStoreError
from student_trainer.store.format import RecordFormat
from student_trainer.store.index import ShardEntry
from student_trainer.store.records import StoredRecord, Unit


def build_shard(
    units: Sequence[Unit], record_format: RecordFormat, *, name: str
) -> tuple[bytes, ShardEntry]:
    """The file of some units and its entry in the index."""
    arrays = columns.to_columns(units, record_format)
    content = safetensors_file.to_bytes(
        arrays,
        metadata=record_format.to_metadata(),
        bf16=columns.bf16_columns(record_format),
    )
    return content, ShardEntry(
        name=name,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        table_crc32c=columns.table_crc32c(arrays),
        num_units=len(units),
        num_records=len(arrays["crc32c"]),
        num_positions=int(arrays["position_offsets"][-1]),
    )


class Shard:
    """Reads units of one file at random; used by several threads at once.

    Raises (at the first use):
        CorruptStoreError: the file is missing, has another size than it was written with, or its
            tables fail their checksum.
    """

    def __init__(self, path: Path, entry: ShardEntry, *, store: str) -> None:
        self.entry = entry
        self._path = path
        self._store = store

    @property
    def unit_keys(self) -> np.ndarray:
        """[U, 16] uint8."""
        return self._file.arrays["unit_keys"]

    @property
    def example_keys(self) -> np.ndarray:
        """[U, 16] uint8."""
        return self._file.arrays["example_keys"]

    def records_of(self, unit: int) -> range:
        """Numbers of the unit's records."""
        offsets = self._file.arrays["record_offsets"]
        return range(offsets.item(unit), offsets.item(unit + 1))

    def record(self, number: int) -> StoredRecord:
        """A record, after its checksum was found right.

        Raises:
            CorruptStoreError: it is not what was written.
        """
        try:
            return self._decoder.record(number)
        except CorruptStoreError as error:
            raise self._corrupt(str(error)) from error

    def unit(self, number: int) -> Unit:
        """A whole unit; errors as in `record`."""
        return Unit(
            key=self.unit_keys[number].tobytes(),
            example_key=self.example_keys[number].tobytes(),
            records=tuple(self.record(record) for record in self.records_of(number)),
        )

    def check_tables(self) -> None:
        """Raises CorruptStoreError where nothing of the file can be read."""
        _ = self._decoder

    def corrupt_units(self) -> dict[int, str]:
        """The units with a record that cannot be read, and why; looks at every byte."""
        found = {}
        for number in range(self.entry.num_units):
            try:
                self.unit(number)
            except CorruptStoreError as error:
                found[number] = str(error)
        return found

    def column_bytes(self) -> dict[str, int]:
        """Bytes of each column."""
        return {name: array.nbytes for name, array in self._file.arrays.items()}

    @cached_property
    def _file(self) -> safetensors_file.MappedFile:
        if not self._path.exists():
            raise self._corrupt("the file is missing")
        num_bytes = self._path.stat().st_size
        if num_bytes != self.entry.num_bytes:
            raise self._corrupt(f"it has {num_bytes} bytes, written were {self.entry.num_bytes}")
        try:
            file = safetensors_file.open_mapped(self._path)
            crc = columns.table_crc32c(file.arrays)
        except CorruptStoreError as error:
            raise self._corrupt(str(error)) from error
        if crc != self.entry.table_crc32c:
            raise self._corrupt("its tables fail their CRC-32C")
        return file

    @cached_property
    def _decoder(self) -> RecordDecoder:
        file = self._file
        try:
            return RecordDecoder(file.arrays, RecordFormat.from_metadata(file.metadata))
        except CorruptStoreError as error:
            raise self._corrupt(str(error)) from error

    def _corrupt(self, reason: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self._store}: shard {self.entry.name} is corrupt: {reason}; `distill store verify` "
            "finds all such places, with --drop it gives them up, and `distill precompute` then "
            "makes them again"
        )
