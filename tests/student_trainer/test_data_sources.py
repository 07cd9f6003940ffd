"""What a path of the data may name."""

from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from student_trainer.data_sources import row_files
from student_trainer.row_keys import HubSelection
from tests.student_trainer import hub_cache

FILES = {
    f"data/train-{index:05d}-of-00002.jsonl": [{"text": f"{index}-{row}"} for row in range(3)]
    for index in range(2)
} | {"data/test-00000-of-00001.jsonl": [{"text": "held out"}]}
TRAIN = [f"{index}-{row}" for index in range(2) for row in range(3)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline, with the dataset acme/texts."""
    cache = tmp_path / "hub"
    hub_cache.write_dataset(cache, "acme/texts", FILES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return cache


def texts(train_path: str, *, first: int = 0, streaming: bool = False, **selection) -> list[str]:
    files = row_files(train_path, selection=HubSelection(**selection), streaming=streaming)
    return [row.read()["text"] for file in files for row in file.rows(first)]  # type: ignore[index]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_id_gives_the_rows_of_its_split(hub, streaming):
    assert texts("acme/texts", streaming=streaming) == TRAIN
    assert texts("acme/texts", streaming=streaming, split="test") == ["held out"]
    assert texts("acme/texts", streaming=streaming, revision=hub_cache.COMMIT) == TRAIN


def test_a_streamed_hub_id_is_a_file_of_rows_for_each_of_its_files(hub):
    first, second = row_files("acme/texts", streaming=True)
    assert [row.source for row in first.rows(1)] == [
        "acme/texts file 1 of 2, row 2",
        "acme/texts file 1 of 2, row 3",
    ]
    assert [row.read() for row in second.rows(2)] == [{"text": "1-2"}]
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("name", "selection"),
    [
        ("acme/nothing", {}),
        ("acme/texts", {"split": "train2"}),
        ("acme/texts", {"subset": "german"}),
        ("acme/texts", {"revision": "v2"}),
    ],
)
def test_what_the_hub_does_not_have_is_one_error(hub, name, selection):
    with pytest.raises(ValueError, match=f"train_path '{name}' is neither a local path") as error:
        row_files(name, selection=HubSelection(**selection))
    assert len(str(error.value).splitlines()) == 1
    for value in selection.values():
        assert value in str(error.value)


def test_a_saved_dataset_gives_its_rows(tmp_path):
    saved = datasets.Dataset.from_list([{"text": text} for text in TRAIN])
    saved.save_to_disk(tmp_path / "one")
    splits = {"train": saved, "test": datasets.Dataset.from_list([{"text": "t"}])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")

    assert texts(str(tmp_path / "one")) == TRAIN
    assert texts(str(tmp_path / "one"), first=4) == TRAIN[4:]
    assert texts(str(tmp_path / "two")) == TRAIN
    assert texts(str(tmp_path / "two"), split="test") == ["t"]
    with pytest.raises(ValueError, match=r"has no split 'dev'; data.split is one of test, train"):
        texts(str(tmp_path / "two"), split="dev")
    # Moved or opened again, it is the same data.
    (once,), (again,) = (row_files(str(tmp_path / "one")) for _ in range(2))
    assert (once.identity, once.size) == (again.identity, len(TRAIN))


def test_a_glob_gives_what_it_matches_in_order(tmp_path):
    for name in ("b1.jsonl", "a1.jsonl", "a2.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a3.jsonl").write_text('{"text": "below"}\n')

    assert texts(f"{tmp_path}/a*.jsonl") == ["a1.jsonl", "a2.jsonl"]
    assert texts(f"{tmp_path}/**/a*.jsonl") == ["a1.jsonl", "a2.jsonl", "below"]
    assert texts(f"{tmp_path}/b*,{tmp_path}/sub") == ["b1.jsonl", "below"]
    with pytest.raises(ValueError, match="matches no file"):
        texts(f"{tmp_path}/c*.jsonl")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/here", "data/train.jsonl", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name):
    with pytest.raises(ValueError, match=r"does not exist; give a file, a folder, a glob, or"):
        row_files(name)
