"""What `data.train_path` names: files, folders, globs, saved datasets and hub ids."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from student_trainer.row_keys import HubSelection
from student_trainer.rows import COMPRESSIONS, READERS, LocalFile, RowFile, extension

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def row_files(
    train_path: str, *, selection: HubSelection | None = None, streaming: bool = False
) -> list[RowFile]:
    """Finds everything that the comma separated parts of `train_path` name, in the order given.

    Args:
        train_path: Each part is a file; a folder (all files below, sorted, hidden ones left out);
            a glob; a folder of `datasets`' save_to_disk; or, where it is none of these, a hub id
            NAMESPACE/NAME. The extension decides how a file is read (`rows.READERS`).
        selection: of hub ids and saved datasets.
        streaming: hub ids are not downloaded first.

    Raises:
        ValueError: nothing is there, or an extension is not known.
    """
    selection = selection or HubSelection()
    files: list[RowFile] = []
    for name in (part.strip() for part in train_path.split(",")):
        if not name:
            raise ValueError(f"train_path {train_path!r} has an empty part; separate by one comma")
        files += _part(name, selection, streaming=streaming)
    return files


def _part(name: str, selection: HubSelection, *, streaming: bool) -> list[RowFile]:
    path = Path(name)
    if _is_saved_dataset(path):
        from student_trainer.hub_data import open_saved_dataset  # noqa: PLC0415  see there

        return [open_saved_dataset(path, split=selection.split)]
    if path.exists():
        return [*_local_files(_below(path) if path.is_dir() else [path])]
    if glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(name, recursive=True))
        files = [file for path in found for file in (_below(path) if path.is_dir() else [path])]
        if not files:
            raise ValueError(f"train_path {name!r} matches no file")
        return [*_local_files(files)]
    if HUB_ID.fullmatch(name) and extension(path) not in READERS:
        from student_trainer.hub_data import open_hub_dataset  # noqa: PLC0415  see there

        return open_hub_dataset(
            name,
            subset=selection.subset,
            split=selection.split,
            revision=selection.revision,
            streaming=streaming,
        )
    raise ValueError(
        f"train_path {name!r} does not exist; give a file, a folder, a glob, or a hub id "
        "NAMESPACE/NAME"
    )


def _is_saved_dataset(path: Path) -> bool:
    """Whether `datasets` saved a dataset, or several splits of one, in this folder."""
    names = ("dataset_dict.json", "state.json")
    return path.is_dir() and any((path / name).is_file() for name in names)


def _local_files(paths: list[Path]) -> Iterator[RowFile]:
    for path in paths:
        if extension(path) not in READERS:
            raise ValueError(
                f"{path}: unknown extension {path.suffix!r}; known: {', '.join(sorted(READERS))}, "
                f"and these with {', '.join(COMPRESSIONS)}"
            )
        yield LocalFile(path)


def _below(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"train_path {str(folder)!r} is a directory without files")
    return files
