"""The teacher's weights on disk, read a tensor at a time: the trainer never holds the teacher."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


@dataclass(frozen=True, eq=False)
class TeacherCheckpoint:
    """Where each tensor of a safetensors checkpoint is; only the files' headers have been read."""

    paths: dict[str, Path]
    """The file of each tensor, by the tensor's name."""
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> Tensor:
        """Maps one tensor into memory, for as long as the caller holds it."""
        # Opened anew each time: the pages that were read count as this process's memory until the
        # file is closed and its last tensor is gone.
        with safe_open(self.paths[name], framework="pt") as file:
            return file.get_tensor(name)


def open_teacher(model: str) -> TeacherCheckpoint:
    """Finds the weights of a Hugging Face folder or hub id without reading them.

    Raises:
        ValueError: There are no safetensors weights.
    """
    paths, shapes = {}, {}
    for path in _weight_files(model):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                paths[name] = path
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return TeacherCheckpoint(paths, shapes)


def _weight_files(model: str) -> list[Path]:
    index = _find(model, SAFE_WEIGHTS_INDEX_NAME)
    names = [SAFE_WEIGHTS_NAME]
    if index is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [(name, _find(model, name)) for name in names]
    missing = [name for name, path in found if path is None]
    if missing:
        raise ValueError(
            f"cannot read the teacher's weights from {model!r}: no {missing[0]}; give a folder or "
            "hub id that holds safetensors weights (save_pretrained writes them)"
        )
    return [path for _, path in found if path is not None]


def _find(model: str, name: str) -> Path | None:
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        cached = cached_file(model, name)
    except OSError:
        # The hub answers for a missing file as for a missing network; the caller names both.
        return None
    return None if cached is None else Path(cached)
