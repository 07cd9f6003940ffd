"""Streams of targets against a bare gRPC stream and a plain socket, between two processes.

`stream_vs_raw` is payload bytes a second of `HIDDEN` targets (encode, send, receive, check, decode,
make tensors) over those of messages of 1 MiB on a bare gRPC stream; `stream_vs_tcp` the same over a
TCP socket on loopback. `cpu_s_per_gb` is the processor time of both processes together. Ways take
turns, and ratios are medians over rounds. The server has no model.
"""

import dataclasses
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from protos import channel
from tests.bench.instant_targets import InstantTargets
from tests.bench.processes import Child

MIN_STREAM_VS_RAW = 0.8
MIN_STREAM_VS_TCP = 0.2
MAX_CPU_S_PER_GB = 1.5
DEFAULT_ENCODING = "hidden"
ENCODINGS = ("hidden", "top_k")
# Hidden states of the 0.5B shape; the vocabulary matters to no byte that is sent in a stream.
TARGETS = InstantTargets(
    vocab_size=2048, mask_token_id=2047, hidden_size=896, max_length=256, top_k=64
)
_GB = 1e9
_TIMEOUT_S = 600.0


class WayFigures(TypedDict):
    """Medians of one way."""

    gb_per_s: float
    cpu_s_per_gb: float
    transfer_mb: float


def run(*, quick: bool) -> dict:
    """Measures every way."""
    return measure(
        TARGETS,
        transfer_bytes=64_000_000 if quick else 256_000_000,
        num_rounds=7 if quick else 15,
    )


def measure(targets: InstantTargets, *, transfer_bytes: int, num_rounds: int) -> dict:
    """Transfers of about so many bytes, so often."""
    num_states = {
        encoding: max(
            1, round(transfer_bytes / targets.bytes_per_position(encoding) / targets.max_length)
        )
        for encoding in ENCODINGS
    }
    argument = {
        "transfer_bytes": transfer_bytes,
        "num_rounds": num_rounds,
        "num_states": num_states,
    }
    # As launchers of server and trainer set it.
    environment = channel.MALLOC_ENVIRONMENT
    with (
        Child("tests.bench.wire_client", argument, environment=environment) as client,
        Child(
            "tests.bench.wire_server", dataclasses.asdict(targets), environment=environment
        ) as server,
    ):
        client.tell(server.first_line())
        transfers = client.answer(timeout_s=_TIMEOUT_S)
    ways = {name: _figures(all_) for name, all_ in transfers.items()}
    default = transfers[DEFAULT_ENCODING]
    return {
        "stream_vs_raw": _speed_ratio(default, transfers["raw"]),
        "stream_vs_tcp": _speed_ratio(default, transfers["tcp"]),
        "cpu_s_per_gb": ways[DEFAULT_ENCODING]["cpu_s_per_gb"],
        "cpu_vs_raw": ways[DEFAULT_ENCODING]["cpu_s_per_gb"] / ways["raw"]["cpu_s_per_gb"],
        "top_k_vs_raw": _speed_ratio(transfers["top_k"], transfers["raw"]),
        "ways": ways,
        "transfers": transfers,
    }


def _figures(transfers: list[dict]) -> WayFigures:
    return {
        "gb_per_s": float(np.median([t["num_bytes"] / _GB / t["wall_s"] for t in transfers])),
        "cpu_s_per_gb": float(np.median([t["cpu_s"] / t["num_bytes"] * _GB for t in transfers])),
        "transfer_mb": transfers[0]["num_bytes"] / 1e6,
    }


def _speed_ratio(over: list[dict], under: list[dict]) -> float:
    """Median over rounds: the transfers of one round follow each other."""
    return float(
        np.median(
            [
                (a["num_bytes"] / a["wall_s"]) / (b["num_bytes"] / b["wall_s"])
                for a, b in zip(over, under, strict=True)
            ]
        )
    )


def table(result: dict) -> str:
    """The result to read."""
    lines = ["wire: one client, one server, loopback", ""]
    lines.append(f"{'way':8} {'GB/s':>7} {'CPU s/GB':>9} {'MB each':>8}")
    for name, way in result["ways"].items():
        lines.append(
            f"{name:8} {way['gb_per_s']:>7.3f} {way['cpu_s_per_gb']:>9.2f} "
            f"{way['transfer_mb']:>8.0f}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"stream_vs_raw  {result['stream_vs_raw']:.3f}  aim >= {MIN_STREAM_VS_RAW}",
            f"stream_vs_tcp  {result['stream_vs_tcp']:.3f}  aim >= {MIN_STREAM_VS_TCP}",
            f"cpu_s_per_gb   {result['cpu_s_per_gb']:.2f}   aim <= {MAX_CPU_S_PER_GB}; "
            f"{result['cpu_vs_raw']:.2f} times the bare stream's",
        ]
    )


def figure(result: dict) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    names = list(result["ways"])
    left.bar(names, [way["gb_per_s"] for way in result["ways"].values()], color="#0072b2")
    left.set_ylabel("payload GB/s")
    right.bar(names, [way["cpu_s_per_gb"] for way in result["ways"].values()], color="#0072b2")
    right.axhline(MAX_CPU_S_PER_GB, color="black", linestyle="--", linewidth=1, label="aim")
    right.set_ylabel("CPU s per GB, both ends")
    right.legend()
    return drawing
