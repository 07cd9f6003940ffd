"""Bytes a position and random positions a second of each encoding, beside pickles and Parquet."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from tests.bench import stored_files
from tests.bench.stored_files import Read
from tests.bench.stored_records import Records

LENGTH, DENSE_LENGTH = 1024, 64


class Kind(TypedDict):
    """One kind of file; speeds in positions a second, from the system's cache."""

    bytes_per_position: float
    positions_per_s: float
    """Read at random, decoded and verified as that kind does."""
    copied_positions_per_s: float
    """As many bytes copied out of a memory map."""
    sequential_positions_per_s: float
    """What the machine reads of such bytes in order, past the system's cache."""


class Result(TypedDict):
    """TOP_K 64 of a vocabulary of 151,936, hidden states of 896 in bfloat16, logits in float16."""

    top_k_64_bytes_per_position: float
    hidden_bytes_per_position: float
    bytes_vs_pickle: float
    """TOP_K 64 over pickled logits."""
    read_vs_memcpy: float
    """TOP_K 64: positions_per_s over copied_positions_per_s."""
    hidden_read_vs_memcpy: float
    sequential_read_bytes_per_s: float
    kinds: dict[str, Kind]


_Opener = Callable[[Path, Records], AbstractContextManager[Read]]


def run(*, quick: bool) -> Result:
    """Writes and reads all kinds of files."""
    if quick:
        return measure(num_sequences=300, num_dense=6, repeats=6)
    return measure(num_sequences=600, num_dense=12, repeats=20)


def measure(*, num_sequences: int, num_dense: int, repeats: int) -> Result:
    """Measures with so many sequences of TOP_K, a quarter of them of HIDDEN, and of logits.

    A kind should take more than the processor's caches hold, which a store is never read from.
    """
    top_k = Records(encoding="top_k", num_sequences=num_sequences, length=LENGTH)
    hidden = Records(encoding="hidden", num_sequences=num_sequences // 4, length=LENGTH)
    logits = Records(encoding="logits", num_sequences=num_dense, length=DENSE_LENGTH)
    plan: Mapping[str, tuple[_Opener, Records]] = {
        "top_k": (stored_files.in_store, top_k),
        "hidden": (stored_files.in_store, hidden),
        "logits": (stored_files.in_store, logits),
        "pickled_logits": (stored_files.in_pickles, logits),
        "parquet_top_k": (stored_files.in_parquet, top_k),
    }
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in plan}
        kinds = {
            kind: _measure(folders[kind], opener, records, repeats)
            for kind, (opener, records) in plan.items()
        }
        # The largest, so that there is something to read.
        sequential = stored_files.sequential_bytes_per_s(folders["hidden"])
    for kind in kinds.values():
        kind["sequential_positions_per_s"] = sequential / kind["bytes_per_position"]

    def read_vs_memcpy(kind: str) -> float:
        return kinds[kind]["positions_per_s"] / kinds[kind]["copied_positions_per_s"]

    return {
        "top_k_64_bytes_per_position": kinds["top_k"]["bytes_per_position"],
        "hidden_bytes_per_position": kinds["hidden"]["bytes_per_position"],
        "bytes_vs_pickle": kinds["top_k"]["bytes_per_position"]
        / kinds["pickled_logits"]["bytes_per_position"],
        "read_vs_memcpy": read_vs_memcpy("top_k"),
        "hidden_read_vs_memcpy": read_vs_memcpy("hidden"),
        "sequential_read_bytes_per_s": sequential,
        "kinds": kinds,
    }


def _measure(folder: Path, opener: _Opener, records: Records, repeats: int) -> Kind:
    with opener(folder, records) as read:
        num_bytes = stored_files.num_bytes(folder)
        num_positions = records.num_sequences * records.num_positions
        copy = stored_files.copier(folder, num_bytes // records.num_sequences)
        order = np.random.default_rng(1).permutation(records.num_sequences).tolist()
        read_s, copy_s = _fastest([read, copy], order, repeats)
    return {
        "bytes_per_position": num_bytes / num_positions,
        "positions_per_s": num_positions / read_s,
        "copied_positions_per_s": num_positions / copy_s,
        "sequential_positions_per_s": 0.0,
    }


def _fastest(works: list[Read], order: list[int], repeats: int) -> list[float]:
    """Seconds of each work for all numbers: the sum of each number's best time.

    In turns, so that what else the machine does meets all works alike; a number takes far less time
    than the scheduler lets a process run, so one of a few tries is undisturbed.
    """
    best = np.full((len(works), len(order)), np.inf)
    for _ in range(repeats):
        for row, work in enumerate(works):
            for place, number in enumerate(order):
                started_s = time.perf_counter()
                work(number)
                taken_s = time.perf_counter() - started_s
                best[row, place] = min(best[row, place], taken_s)
    return [float(total) for total in best.sum(axis=1)]


def table(result: Result) -> str:
    """The result to read."""
    lines = [
        "read and copied at random from the system's cache, sequential past it; positions a second",
        f"{'':16}{'bytes/position':>16}{'random':>14}{'copy':>14}{'sequential':>14}",
    ]
    for name, kind in result["kinds"].items():
        lines.append(
            f"{name:16}{kind['bytes_per_position']:16,.1f}{kind['positions_per_s']:14,.0f}"
            f"{kind['copied_positions_per_s']:14,.0f}{kind['sequential_positions_per_s']:14,.0f}"
        )
    ratios = (
        f"bytes_vs_pickle {result['bytes_vs_pickle']:.5f}",
        f"read_vs_memcpy {result['read_vs_memcpy']:.3f}",
        f"hidden_read_vs_memcpy {result['hidden_read_vs_memcpy']:.3f}",
    )
    return "\n".join([*lines, "  ".join(ratios)])


def figure(result: Result) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(8, 3), layout="constrained")
    sizes, speeds = drawing.subplots(1, 2, sharey=True)
    names = list(result["kinds"])
    sizes.barh(names, [kind["bytes_per_position"] for kind in result["kinds"].values()])
    sizes.set_xlabel("bytes a position")
    speeds.barh(names, [kind["positions_per_s"] for kind in result["kinds"].values()])
    speeds.set_xlabel("positions a second, read at random")
    for axes in (sizes, speeds):
        axes.set_xscale("log")
    return drawing
