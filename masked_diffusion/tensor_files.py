"""A checkpoint's tensors on disk, read one at a time under transformers' own names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor is, and under which name."""

    path: Path
    published_name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TensorFiles:
    """The tensors of a safetensors checkpoint; only the files' headers have been read."""

    stored: dict[str, StoredTensor]
    """By the name that the family's model class has for them."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.stored.items()}

    def tensor(self, name: str) -> Tensor:
        """Maps one tensor into memory, for as long as the caller holds it."""
        # Opened anew each time: the pages that were read count as this process's memory until the
        # file is closed and its last tensor is gone.
        stored = self.stored[name]
        with safe_open(stored.path, framework="pt") as file:
            return file.get_tensor(stored.published_name)


def open_tensors(model: str, key_mapping: Mapping[str, str]) -> TensorFiles:
    """Finds the weights of a Hugging Face folder or hub id without reading them.

    Args:
        model: Folder or hub id.
        key_mapping: The family's: regular expression in a published name -> what stands there in
            transformers' own, applied in order.

    Raises:
        ValueError: there are no safetensors weights.
    """
    stored = {}
    for path in _weight_files(model):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                shape = tuple(file.get_slice(name).get_shape())
                stored[_native_name(name, key_mapping)] = StoredTensor(
                    path=path, published_name=name, shape=shape
                )
    return TensorFiles(stored)


def _native_name(published_name: str, key_mapping: Mapping[str, str]) -> str:
    name = published_name
    for pattern, replacement in key_mapping.items():
        name = re.sub(pattern, replacement, name, count=1)
    return name


def weight_file_names(model: str) -> list[str]:
    """Lists the files that transformers would load, there or not: a single one, or an index's."""
    if _find(model, SAFE_WEIGHTS_NAME, fetch=False) is not None:
        return [SAFE_WEIGHTS_NAME]
    index = _find(model, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return [SAFE_WEIGHTS_NAME]
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _weight_files(model: str) -> list[Path]:
    found = [(name, _find(model, name)) for name in weight_file_names(model)]
    missing = [name for name, path in found if path is None]
    if missing:
        raise ValueError(
            f"cannot read the weights of {model!r}: no {missing[0]}; give a folder or hub id that "
            "holds safetensors weights (save_pretrained writes them)"
        )
    return [path for _, path in found if path is not None]


def _find(model: str, name: str, *, fetch: bool = True) -> Path | None:
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        cached = cached_file(model, name, local_files_only=not fetch)
    except OSError:
        # The hub answers for a missing file as for a missing network; the caller names both.
        return None
    return None if cached is None else Path(cached)
