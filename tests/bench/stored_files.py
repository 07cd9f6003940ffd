"""The same targets in four kinds of file, each with a way to read one sequence at random."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from protos import codec, teacher_pb2
from student_trainer.store import StoreReader, StoreWriter
from student_trainer.store.identity import StoreIdentity
from student_trainer.wire import TargetSpec, TeacherDescription
from tests.bench.stored_records import MASK_TOKEN_ID, REVISION, VOCAB_SIZE, Records

_CHUNK_BYTES = 1 << 20
Read = Callable[[int], object]
"""Reads the sequence with this number."""


@contextlib.contextmanager
def in_store(folder: Path, records: Records) -> Iterator[Read]:
    """A target store: every checksum verified, ids and states as the codec has them."""
    message = teacher_pb2.DescribeTeacherResponse(
        revision=REVISION, mask_token_id=MASK_TOKEN_ID, vocab_size=VOCAB_SIZE
    )
    identity = StoreIdentity(
        teacher=TeacherDescription.from_message(message),
        targets=TargetSpec(encoding=records.encoding),
        sampler=None,
    )
    with StoreWriter(folder, identity) as writer:
        for unit in records.units():
            writer.add(unit)
        writer.finish()
    keys = [records.key(number) for number in range(records.num_sequences)]
    with StoreReader(folder) as reader:

        def read(number: int) -> object:
            place = reader.find(keys[number])
            assert place is not None
            return place.read()

        yield read


@contextlib.contextmanager
def in_pickles(folder: Path, records: Records) -> Iterator[Read]:
    """Dense logits in the original's way, but a file for each sequence and not one for all."""
    folder.mkdir()
    paths = [folder / f"{number}.pkl" for number in range(records.num_sequences)]
    for path, unit in zip(paths, records.units(), strict=True):
        targets = unit.records[0].targets
        assert isinstance(targets.distribution, codec.Logits)
        content = {
            "input_ids": targets.state,
            "mask_positions": [targets.positions],
            "logits": [targets.distribution.values.data],
        }
        path.write_bytes(pickle.dumps(content))

    yield lambda number: pickle.loads(paths[number].read_bytes())


@contextlib.contextmanager
def in_parquet(folder: Path, records: Records) -> Iterator[Read]:
    """Lists of TOP_K, a row and a row group for each sequence, which suits random reads best."""
    folder.mkdir()
    path = folder / "targets.parquet"
    writer: pq.ParquetWriter | None = None
    for unit in records.units():
        targets = unit.records[0].targets
        top_k = targets.distribution
        assert isinstance(top_k, codec.TopK)
        columns = {
            "state": targets.state,
            "token_ids": top_k.token_ids,
            "log_probs": top_k.log_probs.data,
            "tail_log_masses": top_k.tail_log_masses[0],
        }
        table = pa.table({name: [column] for name, column in columns.items()})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    with pq.ParquetFile(path, memory_map=True) as file:

        def read(number: int) -> object:
            table = file.read_row_group(number)
            return {
                name: table[name].chunk(0).values.to_numpy(zero_copy_only=False)
                for name in table.column_names
            }

        yield read


def num_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def copier(folder: Path, size: int) -> Read:
    """Copies as many bytes out of the largest file, mapped, from evenly spread places."""
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    raw = np.asarray(np.memmap(largest, dtype=np.uint8, mode="r"))
    room = max(len(raw) - size, 1)

    def copy(number: int) -> object:
        start = number * size % room
        return raw[start : start + size].tobytes()

    return copy


def sequential_bytes_per_s(folder: Path) -> float:
    """Reads the files from first to last, none of them in the system's cache where it can be told.

    A virtual machine's host may still hold them.
    """
    paths = [path for path in folder.iterdir() if path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started_s = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(_CHUNK_BYTES):
                pass
    return num_bytes(folder) / (time.perf_counter() - started_s)
