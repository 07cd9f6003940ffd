"""The files of a store: the same records back, and damage found by name."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from safetensors import safe_open

from protos import codec, teacher_pb2
from student_trainer.store import CorruptStoreError, StoreMismatchError, StoreReader, StoreWriter
from student_trainer.store import columns as store_columns
from student_trainer.store.decoder import RecordDecoder
from student_trainer.store.format import RecordFormat
from student_trainer.store.identity import StoreIdentity
from student_trainer.store.records import StoredRecord, Unit
from student_trainer.store.verify import verify
from student_trainer.wire import TargetSpec, TeacherDescription
from tests.protos import records

TEACHER = TeacherDescription.from_message(
    teacher_pb2.DescribeTeacherResponse(revision="0f3a", mask_token_id=12)
)
IDENTITY = StoreIdentity(teacher=TEACHER, targets=TargetSpec(encoding="top_k"), sampler=None)
NUM_UNITS, UNITS_PER_SHARD = 240, 3


def unit(number: int) -> Unit:
    targets = replace(records.example(), sequence_id=number)
    record = StoredRecord(targets=targets, t=0.5, num_maskable=4)
    return Unit(key=number.to_bytes(16, "big"), records=(record,))


def write(folder: object, numbers: range = range(6)) -> None:
    with StoreWriter(str(folder), IDENTITY, max_shard_bytes=1) as writer:
        for number in numbers:
            writer.add(unit(number))
        writer.finish()


@given(records.step_targets().filter(lambda targets: targets.state is not None))
def test_a_record_comes_back_as_the_same_payload(targets):
    record_format = RecordFormat.of(targets, mask_token_id=3)
    record = StoredRecord(targets=targets, t=0.5, num_maskable=4)
    found = store_columns.to_columns([Unit(key=bytes(16), records=(record,))], record_format)
    back = RecordDecoder(found, record_format).record(0).targets
    if len(targets.positions):
        assert codec.encode_targets(back) == codec.encode_targets(targets)


@pytest.mark.parametrize("kind", [codec.Hidden, codec.Logits])
def test_records_without_positions_keep_the_width_of_their_values(kind):
    values = codec.Values(dtype="f32", data=np.zeros((0, 5), dtype="<f4"))
    targets = replace(
        records.example(),
        positions=np.zeros(0, dtype="<i4"),
        distribution=kind(values=values),
    )
    record_format = RecordFormat.of(targets, mask_token_id=12)
    record = StoredRecord(targets=targets, t=0.5, num_maskable=4)
    found = store_columns.to_columns([Unit(key=bytes(16), records=(record,))], record_format)
    distribution = RecordDecoder(found, record_format).record(0).targets.distribution
    assert isinstance(distribution, kind)
    assert distribution.values.data.shape == (0, 5)


@pytest.mark.parametrize("url", ["local", "memory://store_of_a_test"])
def test_units_are_found_by_key_and_a_reader_follows_a_writer(url, tmp_path):
    url = str(tmp_path) if url == "local" else url
    write(url, range(3))
    with StoreReader(url) as reader:
        assert reader.finished and reader.find(unit(4).key) is None
        write(url, range(3, 6))
        assert reader.refresh() and not reader.refresh()
        for number in (5, 0, 3):
            place = reader.find(unit(number).key)
            assert place is not None
            (record,) = place.read().records
            assert records.content(record.targets) == records.content(
                unit(number).records[0].targets
            )


def test_stores_may_share_a_cache_of_remote_files(tmp_path):
    for number in range(2):
        url = f"memory://cached_store_{number}"
        write(url, range(number, number + 1 + number))
        with StoreReader(url, cache_folder=tmp_path) as reader:
            place = reader.find(unit(number).key)
            assert place is not None and place.read().key == unit(number).key


def test_looking_again_sorts_nothing_until_something_was_added(tmp_path):
    with StoreWriter(tmp_path, IDENTITY, max_shard_bytes=1) as writer, StoreReader(tmp_path) as r:
        writer.add(unit(0))
        assert r.refresh()
        version, places = r.version, r._snapshot.by_key
        writer.finish()
        assert not r.refresh() and r.finished
        assert r.version == version and r._snapshot.by_key is places


def test_the_library_reads_a_shard(tmp_path):
    write(tmp_path, range(1))
    with safe_open(tmp_path / "shard-00000.safetensors", framework="numpy") as file:
        assert file.get_tensor("sequence_ids").tolist() == [0]
        assert file.get_tensor("states").tolist() == list(range(10, 16))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_writers_that_are_killed_at_any_moment_lose_the_open_shard_at_most(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.student_trainer.store.killed_writers", str(tmp_path), "5"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Some were killed at work, or this shows nothing.
    assert any(0 < there < NUM_UNITS for _, there in found)
    for added, there in found:
        # The last word of a writer may be older than what it has published since.
        assert there >= added - UNITS_PER_SHARD
    with StoreReader(tmp_path) as reader:
        # Each unit once: the next writer only made what was missing.
        keys = [place.read().key for place in reader.places()]
        assert sorted(keys) == [unit(number).key for number in range(NUM_UNITS)]
        assert reader.finished


def test_a_flipped_bit_is_named_and_given_up_only_if_asked(tmp_path):
    write(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    with StoreReader(tmp_path) as reader:
        offset = bytes(content).rindex(reader.shards[2]._file.arrays["log_probs"].tobytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with StoreReader(tmp_path) as reader:
        place = reader.find(unit(2).key)
        assert place is not None
        with pytest.raises(CorruptStoreError, match=r"shard-00002.*record 0 \(sequence 2, step 3"):
            place.read()
    assert [problem.file for problem in verify(tmp_path)] == [path.name]
    verify(tmp_path, drop=True)
    with StoreReader(tmp_path) as reader:
        assert len(reader) == 5 and reader.find(unit(2).key) is None


def test_a_shard_that_was_taken_out_is_kept_when_the_next_one_is_damaged(tmp_path):
    for number in range(3):
        write(tmp_path, range(number, number + 1))
        path = tmp_path / f"shard-{number:05}.safetensors"
        path.write_bytes(str(number).encode())
        verify(tmp_path, drop=True)
    kept = sorted(tmp_path.glob("corrupt-*"))
    assert [path.read_bytes() for path in kept] == [b"0", b"1", b"2"]


def test_a_cut_file_is_named_and_given_up_only_if_asked(tmp_path):
    write(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptStoreError, match=r"shard-00001.*has \d+ bytes, written were"):
        StoreReader(tmp_path)
    verify(tmp_path, drop=True)
    with StoreReader(tmp_path) as reader:
        assert len(reader) == 5


@pytest.mark.parametrize(
    "name", ["revision", "tokenizer_fingerprint", "vocab_size", "mask_token_id"]
)
def test_targets_of_another_teacher_are_refused_by_name(tmp_path, name):
    write(tmp_path)
    is_number = name in ("vocab_size", "mask_token_id")
    values: dict[str, Any] = {name: 7 if is_number else "other"}
    other = replace(IDENTITY, teacher=replace(TEACHER, **values))
    with pytest.raises(StoreMismatchError, match=f"teacher.{name} = "):
        StoreWriter(tmp_path, other).__enter__()
