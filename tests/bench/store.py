"""Bytes a position and random positions a second of a store, beside pickled logits and a copy."""

import hashlib
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from protos import codec, teacher_pb2
from student_trainer.store import StoreReader, StoreWriter
from student_trainer.store.identity import StoreIdentity
from student_trainer.store.records import StoredRecord, Unit
from student_trainer.wire import Encoding, TargetSpec, TeacherDescription
from tests.bench.instant_targets import REVISION, InstantTargets

VOCAB_SIZE, HIDDEN_SIZE, TOP_K, LENGTH = 151_936, 896, 64, 1024
MASK_TOKEN_ID = 151_665


class Result(TypedDict):
    """Ratios compare TOP_K 64 with pickled float16 logits, and with a copy of its own bytes."""

    top_k_64_bytes_per_position: float
    hidden_bytes_per_position: float
    pickle_bytes_per_position: float
    bytes_vs_pickle: float
    read_vs_memcpy: float
    hidden_read_vs_memcpy: float
    positions_per_s: dict[str, float]


def run(*, quick: bool) -> Result:
    """Writes and reads a store of each encoding."""
    # More than the processor's caches hold, which a store is never read from.
    num_units, repeats = (200, 4) if quick else (400, 8)
    bytes_each, speeds, copies = {}, {}, {}
    for encoding in ("top_k", "hidden"):
        with tempfile.TemporaryDirectory() as folder:
            _write(folder, encoding, num_units)
            found = _measure(folder, repeats)
        bytes_each[encoding], speeds[encoding], copies[encoding] = found
    row = np.zeros((1, VOCAB_SIZE), dtype=np.float16)
    pickled = float(len(pickle.dumps(row)))
    return {
        "top_k_64_bytes_per_position": bytes_each["top_k"],
        "hidden_bytes_per_position": bytes_each["hidden"],
        "pickle_bytes_per_position": pickled,
        "bytes_vs_pickle": bytes_each["top_k"] / pickled,
        "read_vs_memcpy": speeds["top_k"] / copies["top_k"],
        "hidden_read_vs_memcpy": speeds["hidden"] / copies["hidden"],
        "positions_per_s": speeds | {f"copy_{name}": speed for name, speed in copies.items()},
    }


def _write(folder: str, encoding: Encoding, num_units: int) -> None:
    rng = np.random.default_rng(0)
    instant = InstantTargets(
        vocab_size=2,
        mask_token_id=MASK_TOKEN_ID,
        hidden_size=HIDDEN_SIZE,
        max_length=LENGTH,
        top_k=TOP_K,
    )
    message = teacher_pb2.DescribeTeacherResponse(
        revision=REVISION, mask_token_id=MASK_TOKEN_ID, vocab_size=VOCAB_SIZE
    )
    identity = StoreIdentity(
        teacher=TeacherDescription.from_message(message),
        targets=TargetSpec(encoding=encoding, top_k=TOP_K),
        sampler=None,
    )
    with StoreWriter(folder, identity) as writer:
        for number in range(num_units):
            state = rng.integers(0, MASK_TOKEN_ID, LENGTH, dtype=np.int32)
            state[rng.permutation(LENGTH)[: LENGTH // 2]] = MASK_TOKEN_ID
            empty = instant.record("hidden", sequence_id=number, state_L=state)
            distribution = _distribution(rng, encoding, len(empty.positions))
            targets = replace(empty, state=state, distribution=distribution)
            record = StoredRecord(targets=targets, t=0.5, num_maskable=LENGTH)
            writer.add(Unit(key=_key(number), records=(record,)))
        writer.finish()


def _distribution(rng: np.random.Generator, encoding: str, rows: int) -> codec.Distribution:
    """Random numbers: ids uniform over the vocabulary, the worst case of every coding."""
    if encoding == "hidden":
        bits = rng.integers(0, 2**15, (rows, HIDDEN_SIZE), dtype=np.uint16)
        return codec.Hidden(values=codec.Values(dtype="bf16", data=bits))
    strata = VOCAB_SIZE // TOP_K
    ids = np.arange(TOP_K) * strata + rng.integers(0, strata, (rows, TOP_K))
    log_probs = rng.uniform(-9, 0, rows * TOP_K).astype("<f2")
    return codec.TopK(
        row_offsets=np.arange(rows + 1, dtype="<i4") * TOP_K,
        token_ids=ids.astype("<i4").ravel(),
        log_probs=codec.Values(dtype="f16", data=log_probs),
        temperatures=np.ones(1, dtype="<f4"),
        log_normalizers=np.zeros((1, rows), dtype="<f4"),
        tail_log_masses=rng.uniform(-9, 0, (1, rows)).astype("<f4"),
    )


def _measure(folder: str, repeats: int) -> tuple[float, float, float]:
    with StoreReader(folder) as reader:
        counts = reader.counts
        order = np.random.default_rng(1).permutation(len(reader))
        keys = [_key(int(number)) for number in order]
        (path,) = list(Path(folder).glob("shard-*.safetensors"))[:1]
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        size = counts["num_bytes"] // len(reader)
        starts = [int(number) * size % max(len(raw) - size, 1) for number in order]

        def read() -> None:
            for key in keys:
                place = reader.find(key)
                assert place is not None
                place.read()

        def copy() -> None:
            for start in starts:
                raw[start : start + size].tobytes()

        read_s, copy_s = _fastest(read, repeats), _fastest(copy, repeats)
    num_positions = counts["num_positions"]
    return counts["num_bytes"] / num_positions, num_positions / read_s, num_positions / copy_s


def _fastest(work: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return min(times)


def table(result: Result) -> str:
    """The result to read."""
    lines = [f"{name:30} {value:>14,.3f}" for name, value in result.items() if name[-2:] != "_s"]
    speeds = [f"{n:30} {v:>14,.0f} positions/s" for n, v in result["positions_per_s"].items()]
    return "\n".join(
        ["store: TOP_K 64 and HIDDEN (896, bf16), vocabulary 151,936", *lines, *speeds]
    )


def figure(result: Result) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(6, 3), layout="constrained")
    axes = drawing.subplots()
    speeds = result["positions_per_s"]
    axes.barh(list(speeds), list(speeds.values()))
    axes.set_xlabel("positions a second, at random")
    return drawing


def _key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()
