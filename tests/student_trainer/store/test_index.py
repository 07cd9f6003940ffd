"""Indices that several programs change: none undoes what another did."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from student_trainer.store import StoreError, StoreReader, StoreWriter
from student_trainer.store.folder import StoreFolder
from student_trainer.store.index import WorkShare
from student_trainer.store.merge import merge
from student_trainer.store.verify import verify
from tests.student_trainer.store.test_store import IDENTITY, unit, write

SHARE = WorkShare(number=1, total=2)


def write_share(folder: Path, number: int) -> None:
    with StoreWriter(folder, IDENTITY, share=SHARE) as writer:
        writer.add(unit(number))


@pytest.mark.parametrize("change", [lambda folder: verify(folder, drop=True), merge])
def test_what_a_writer_adds_just_before_its_index_is_locked_is_kept(
    tmp_path, monkeypatch, change: Callable[[Path], object]
):
    write(tmp_path, range(2))
    write_share(tmp_path, 2)
    # The first shard cannot be read, so that verify writes its index anew.
    (tmp_path / "shard-00000.safetensors").write_bytes(b"")
    (tmp_path / "shard-001-of-002-00000.safetensors").write_bytes(b"")
    lock, late = StoreFolder.lock, iter([3])

    @contextlib.contextmanager
    def lock_late(self: StoreFolder, name: str) -> Iterator[None]:
        if name == SHARE.index_name:
            for number in late:
                write_share(tmp_path, number)
        with lock(self, name):
            yield

    monkeypatch.setattr(StoreFolder, "lock", lock_late)
    change(tmp_path)
    monkeypatch.undo()
    verify(tmp_path, drop=True)
    with StoreReader(tmp_path) as reader:
        assert sorted(place.read().key for place in reader.places()) == [unit(1).key, unit(3).key]


@pytest.mark.parametrize("change", [lambda folder: verify(folder, drop=True), merge])
def test_indices_are_not_changed_under_a_writer(tmp_path, change: Callable[[Path], object]):
    write(tmp_path, range(2))
    with (
        StoreWriter(tmp_path, IDENTITY, share=SHARE),
        pytest.raises(StoreError, match=f"another process writes {SHARE.index_name}"),
    ):
        change(tmp_path)


def test_a_number_follows_all_that_the_writer_ever_had():
    assert SHARE.next_number([]) == 0
    names = [SHARE.shard_name(4), f"corrupt-{SHARE.shard_name(7)}", "shard-00009.safetensors"]
    assert SHARE.next_number(names) == 8
    assert WorkShare().next_number(names) == 10


def test_shards_merged_into_a_store_do_not_take_the_number_of_a_corrupt_one(tmp_path):
    store, source = tmp_path / "store", tmp_path / "source"
    write(store, range(1))
    write(source, range(1, 2))
    (store / "shard-00000.safetensors").rename(store / "corrupt-shard-00000.safetensors")
    verify(store, drop=True)
    merge(store, [source])
    with StoreReader(store) as reader:
        assert [entry.name for entry in reader.entries] == ["shard-00001.safetensors"]
