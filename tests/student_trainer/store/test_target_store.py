"""A store as a source of targets: what it refuses, waits for and gives."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protos import codec
from student_trainer.store import (
    MissingTargetsError,
    StoreExpectations,
    StoreMismatchError,
    StoreReader,
    StoreWriter,
    TargetStore,
)
from student_trainer.store.reader import UnitPlace
from tests.protos import records
from tests.student_trainer.store.test_store import IDENTITY, unit, write

ROOT = Path(__file__).parents[3]
FOLLOWER = """
import sys
from student_trainer.store import TargetStore
from tests.student_trainer.store.test_store import unit
with TargetStore(sys.argv[1], wait_s=60) as store:
    print("open", flush=True)
    for number in (2, 0, 1):
        (record,) = store.read(unit(number).key, what=f"unit {number}").records
        print(record.targets.sequence_id, flush=True)
    try:
        store.read(unit(3).key, what="unit 3")
    except ValueError as error:
        print(error, flush=True)
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("revision", "10"),
        ("tokenizer_fingerprint", "other"),
        ("vocab_size", 7),
        ("mask_token_id", 3),
    ],
)
def test_a_store_of_something_else_is_refused_by_name(tmp_path, name, value):
    write(tmp_path)
    found = getattr(IDENTITY.teacher, name)
    words = f"was made with {name} = {found!r}, expected is {value!r}"
    with pytest.raises(StoreMismatchError, match=words):
        TargetStore(tmp_path, expected=StoreExpectations(**{name: value}))
    TargetStore(tmp_path, expected=StoreExpectations(**{name: found})).close()


def test_a_temperature_that_was_not_asked_for_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"temperatures \[1.0\], not 3.0"):
        TargetStore(tmp_path, temperature=3.0)


def test_what_another_thread_found_meanwhile_is_not_missing(tmp_path, monkeypatch):
    with StoreWriter(tmp_path, IDENTITY) as writer, TargetStore(tmp_path) as store:
        find = StoreReader.find

        def find_before_it_comes(reader: StoreReader, key: bytes) -> UnitPlace | None:
            place = find(reader, key)
            if place is None and not reader.finished:
                writer.add(unit(0))
                writer.finish()
                reader.refresh()
            return place

        monkeypatch.setattr(StoreReader, "find", find_before_it_comes)
        assert store.read(unit(0).key, what="unit 0").key == unit(0).key


def test_a_state_that_is_missing_is_an_error_that_says_whether_more_may_come(tmp_path):
    write(tmp_path)
    state = unit(0).records[0].targets.state
    assert state is not None
    with (
        TargetStore(tmp_path) as store,
        pytest.raises(MissingTargetsError, match="state of sequence 5; it is finished"),
    ):
        store.score([state], sequence_ids=[5])
    with (
        StoreWriter(tmp_path, IDENTITY),
        TargetStore(tmp_path) as store,
        pytest.raises(MissingTargetsError, match="is not finished, and nothing new came"),
    ):
        store.score([state], sequence_ids=[5])


def test_a_reader_in_another_process_follows_a_running_writer(tmp_path):
    with StoreWriter(tmp_path, IDENTITY, max_shard_bytes=1) as writer:
        with child(FOLLOWER, tmp_path) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline() == "open\n"
            # It waits for a unit before it looks for the next: 2, 0, 1, in lock-step with us.
            writer.add(unit(0))
            writer.add(unit(2))
            assert follower.stdout.readline() == "2\n"
            assert follower.stdout.readline() == "0\n"
            writer.add(unit(1))
            assert follower.stdout.readline() == "1\n"
            writer.finish()
            assert "does not hold unit 3; it is finished" in follower.stdout.readline()
        assert follower.returncode == 0


def test_several_readers_of_several_threads_read_the_same_in_any_order(tmp_path):
    write(tmp_path, range(40))

    def read(reader: StoreReader, seed: int) -> dict[int, bytes]:
        numbers = list(range(40))
        random.Random(seed).shuffle(numbers)
        found = {}
        for number in numbers:
            place = reader.find(unit(number).key)
            assert place is not None
            found[number] = codec.encode_targets(place.read().records[0].targets)
        return found

    expected = {
        number: codec.encode_targets(unit(number).records[0].targets) for number in range(40)
    }
    with (
        StoreReader(tmp_path) as one,
        StoreReader(tmp_path) as other,
        ThreadPoolExecutor(4) as threads,
    ):
        tasks = [threads.submit(read, (one, other)[seed % 2], seed) for seed in range(8)]
        assert all(task.result() == expected for task in tasks)


def test_equal_units_of_two_writers_are_one_answer(tmp_path):
    write(tmp_path, range(2))
    write(tmp_path, range(1, 3))
    with TargetStore(tmp_path) as store:
        assert len(store.reader) == 4
        found = store.read(unit(1).key, what="it").records[0].targets
        expected = unit(1).records[0].targets
        assert records.content(found) == records.content(expected)
