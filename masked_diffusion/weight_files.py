"""What a checkpoint's safetensors files hold, from their headers alone."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import cached_file

from masked_diffusion.families import Denoiser
from masked_diffusion.tensor_files import weight_file_names

HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The weights of a checkpoint as they lie on disk; a hub id's as they lie in the cache."""

    num_bytes: int
    """Size of the files that are there."""
    num_files: int
    """Files that are there."""
    missing_files: tuple[str, ...]
    """Names of files that should be there and are not."""
    damaged_files: tuple[str, ...]
    """Names of files whose header cannot be read, or that end before their last tensor does."""
    dtypes: dict[str, int]
    """Number format, as safetensors names it -> numbers stored in it."""
    tensor_names: tuple[str, ...]
    """Sorted, as published, of all files whose header can be read."""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How the stored tensors differ from those that the architecture has."""

    missing: tuple[str, ...]
    """Names in the model's class of what no file holds."""
    unused: tuple[str, ...]
    """Published names of what the model has no place for."""


@dataclass(frozen=True)
class _Header:
    entries: dict[str, dict[str, Any]]
    """Tensor name -> dtype, shape, data_offsets."""
    data_is_whole: bool
    """Whether the file goes on until its last tensor ends."""


def read_weight_files(model: str) -> WeightFiles:
    """Reads names, formats and sizes; no weight is read, and no hub id's weights are fetched.

    Args:
        model: Folder or hub id.
    """
    folder = _folder(model)
    present, missing, damaged = [], [], []
    tensors: dict[str, dict[str, Any]] = {}
    for name in weight_file_names(model):
        path = folder / name
        if not path.is_file():
            missing.append(name)
            continue
        present.append(path)
        try:
            header = _read_header(path)
        except ValueError:
            damaged.append(name)
            continue
        tensors |= header.entries
        if not header.data_is_whole:
            damaged.append(name)
    dtypes: dict[str, int] = {}
    for entry in tensors.values():
        dtypes[entry["dtype"]] = dtypes.get(entry["dtype"], 0) + math.prod(entry["shape"])
    return WeightFiles(
        num_bytes=sum(path.stat().st_size for path in present),
        num_files=len(present),
        missing_files=tuple(missing),
        damaged_files=tuple(damaged),
        dtypes=dtypes,
        tensor_names=tuple(sorted(tensors)),
    )


def compare_tensors(denoiser: Denoiser, tensor_names: tuple[str, ...]) -> TensorDifference:
    """Compares stored names with an architecture's, renamed like transformers does on loading.

    Args:
        denoiser: Without weights, on the meta device; its tied tensors need to be stored once.
        tensor_names: As published.
    """
    model = denoiser.model
    state = model.state_dict(keep_vars=True)
    mapping = get_model_conversion_mapping(model, dict(denoiser.key_mapping) or None)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    # One name may stand for several tensors: a converter splits what it loads.
    stored, unused = set(), []
    for published in tensor_names:
        name, source = rename_source_key(
            published, renamings, converters, model.base_model_prefix, state
        )
        if name not in state:
            unused.append(published)
            continue
        stored.add(id(state[name]))
        for converter in converters:
            if source in converter.source_patterns:
                first, *others = converter.target_patterns
                targets = (name.replace(first, other) for other in others)
                stored.update(id(state[target]) for target in targets if target in state)
    missing: dict[int, str] = {}
    for name, tensor in state.items():
        if id(tensor) not in stored:
            missing.setdefault(id(tensor), name)  # a tied one once, under its first name
    return TensorDifference(missing=tuple(sorted(missing.values())), unused=tuple(unused))


def _folder(model: str) -> Path:
    """Where the files are, or of a hub id would be."""
    if Path(model).is_dir():
        return Path(model)
    config = cached_file(model, "config.json")
    assert config is not None  # the blueprint has read it
    return Path(config).parent


def _read_header(path: Path) -> _Header:
    """Reads a file's table, not what it points to.

    Not by safetensors' own reader, which refuses a truncated file without saying what it holds.

    Raises:
        ValueError: no such table.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    data_bytes = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    return _Header(entries, path.stat().st_size >= HEADER_LENGTH_BYTES + length + data_bytes)
