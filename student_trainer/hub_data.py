"""Datasets of the hub and those that `datasets` saved, as files of rows.

Imported only where one of these is named: `datasets` takes longer to import than a file to read.
"""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub

from student_trainer.rows import Row, RowFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MappedDataset:
    """A dataset on disk: any row is found at once."""

    name: str
    dataset: datasets.Dataset
    identity: str
    """Name and the fingerprint that `datasets` keeps of the content."""

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.dataset)

    def rows(self, first: int = 0) -> Iterator[Row]:
        """See `RowFile.rows`."""
        for index in range(first, len(self.dataset)):
            source = f"{self.name}, row {index + 1}"
            yield Row(source, functools.partial(self.dataset.__getitem__, index))


@dataclass(frozen=True, eq=False)
class StreamedShard:
    """One file of a dataset that stays on the hub; rows are found by reading those before."""

    name: str
    dataset: datasets.IterableDataset
    identity: str
    """Name, revision and number; the hub tells nothing of the content."""
    size: int = 0
    """Not known."""

    def rows(self, first: int = 0) -> Iterator[Row]:
        """See `RowFile.rows`."""
        rows = self.dataset.skip(first) if first else self.dataset
        for number, row in enumerate(rows, start=first + 1):
            yield Row(f"{self.name}, row {number}", functools.partial(_same, row))


def open_saved_dataset(path: Path, *, split: str) -> RowFile:
    """Opens what `save_to_disk` wrote; of several splits the one asked for.

    Raises:
        ValueError: there is no such split.
    """
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(
                f"{path} has no split {split!r}; data.split is one of {', '.join(sorted(loaded))}"
            )
        loaded = loaded[split]
    # Of the dataset's own, and not of the folder: moved data are the same data.
    return MappedDataset(str(path), loaded, f"saved {loaded._fingerprint}")


def open_hub_dataset(
    name: str, *, subset: str | None, split: str, revision: str | None, streaming: bool
) -> list[RowFile]:
    """Opens a dataset of the hub, or of the local cache where the hub cannot be reached.

    Raises:
        ValueError: there is no such dataset, subset, split or revision.
    """
    load = functools.partial(
        datasets.load_dataset, name=subset, split=split, revision=revision, streaming=streaming
    )
    try:
        dataset = _load(load, name, revision)
    except _FAILURES as error:
        raise ValueError(
            f"train_path {name!r} is neither a local path nor a dataset that the hub or the local "
            f"cache can give (data.subset={subset}, data.split={split}, data.revision={revision}): "
            f"{_first_line(error)}"
        ) from error
    if isinstance(dataset, datasets.IterableDataset):
        number = dataset.num_shards
        return [
            StreamedShard(
                f"{name} file {index + 1} of {number}",
                dataset.shard(number, index),
                f"hub {name} {subset} {split} {revision} {index}/{number}",
            )
            for index in range(number)
        ]
    return [MappedDataset(name, dataset, f"hub {name} {dataset._fingerprint}")]


_FAILURES = (OSError, ValueError, datasets.exceptions.DatasetsError)
"""No connection and no file are OSErrors, an unknown subset or split is a ValueError."""


def _load(
    load: "functools.partial[datasets.Dataset | datasets.IterableDataset]",
    name: str,
    revision: str | None,
) -> "datasets.Dataset | datasets.IterableDataset":
    """From the hub; without it, from what `datasets` prepared or from the files of a snapshot."""
    try:
        return load(name)
    except ConnectionError as error:
        # `datasets` looks only for what it prepared itself, not into the hub's own cache.
        try:
            folder = huggingface_hub.snapshot_download(
                name, repo_type="dataset", revision=revision, local_files_only=True
            )
        except huggingface_hub.errors.LocalEntryNotFoundError:
            raise error from None
        logger.info("hub cannot be reached, dataset=%s snapshot=%s", name, folder)
        # A revision is the hub's; this folder is one already.
        return functools.partial(load, revision=None)(folder)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _same(row: object) -> object:
    return row
