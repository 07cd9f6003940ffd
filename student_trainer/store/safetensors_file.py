"""Safetensors files of numpy arrays, read in place by memory map.

The library's own reader copies, and its numpy flavour knows no bfloat16; a store is read at random,
a few kilobytes at a time, so its files are mapped and arrays are views of the map.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protos import parts
from student_trainer.store.errors import CorruptStoreError

_NUMPY_OF: Mapping[str, str] = {
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",  # numpy has no bfloat16: its bits
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_NAME_OF: Mapping[str, str] = {kind: name for name, kind in _NUMPY_OF.items() if name != "BF16"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MappedFile:
    """The arrays of a file and its metadata."""

    arrays: Mapping[str, np.ndarray]
    """Read-only views; bfloat16 as its uint16 bits."""
    metadata: Mapping[str, str]


def to_bytes(
    arrays: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str],
    bf16: frozenset[str] = frozenset(),
) -> bytes:
    """A safetensors file of the arrays.

    Args:
        bf16: names of uint16 arrays that are the bits of bfloat16 numbers.
    """
    little = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        for name, array in arrays.items()
    }
    # The widest first, as the library does: every tensor then begins at a multiple of its width.
    names = sorted(little, key=lambda name: (-little[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + little[name].nbytes
        header[name] = {
            "dtype": "BF16" if name in bf16 else _NAME_OF[little[name].dtype.str],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(little[n].tobytes() for n in names)])


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32C of all arrays, in the order of their names."""
    crc = 0
    for _, array in sorted(arrays.items()):
        crc = parts.crc32c(np.ascontiguousarray(array), start=crc)
    return crc


def open_mapped(path: Path) -> MappedFile:
    """Maps a file.

    Raises:
        CorruptStoreError: it is no safetensors file, or is cut.
    """
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        (header_bytes,) = struct.unpack("<Q", bytes(raw[:8]))
        start = 8 + header_bytes
        if start > len(raw):
            raise ValueError(f"its header of {header_bytes} bytes is cut")
        header = json.loads(bytes(raw[8:start]))
        metadata = header.pop("__metadata__", {})
        arrays = {name: _view(raw, start, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CorruptStoreError(f"{path} is no whole safetensors file: {error}") from error
    return MappedFile(arrays=arrays, metadata=metadata)


def _view(raw: np.ndarray, start: int, entry: Mapping) -> np.ndarray:
    first, end = entry["data_offsets"]
    if start + end > len(raw):
        raise ValueError(f"it has {len(raw)} bytes, its tensors end at {start + end}")
    # A plain array: slicing np.memmap objects costs microseconds each.
    flat = np.asarray(raw)[start + first : start + end]
    return flat.view(_NUMPY_OF[entry["dtype"]]).reshape(entry["shape"])
