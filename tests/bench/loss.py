"""The trainer's loss against all logits at once: time and extra memory, for the real vocabulary.

A call is the forward and backward of half cross-entropy and half divergence from `HIDDEN` targets.
`chunked_time_ratio` is the processor time of the product's loss over that of the naive one on the
same positions, the worst of the divergences; `chunked_peak_ratio` the same of the extra memory,
which holds the gradients. The naive loss of 4,096 positions takes up to 20 GB, so both run on fewer
and their peaks are carried over to 4,096: what grows with positions grows in proportion. `liger` is
Liger-Kernel's chunked JSD on as many positions at once, where that is installed.
"""

import dataclasses
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from tests.bench.loss_arms import DIVERGENCES, LossWorkload
from tests.bench.processes import Child

MAX_PEAK_RATIO = 0.10
MAX_TIME_RATIO = 1.2
NUM_POSITIONS = 4096
QUICK = LossWorkload(hidden_size=128, num_positions=82)
FULL = LossWorkload()
_TIMEOUT_S = 3600.0
_FLOAT_BYTES = 4


class DivergenceFigures(TypedDict):
    """Of one divergence, over the naive implementation of the same."""

    chunked_peak_ratio: float
    chunked_time_ratio: float
    chunked_peak_bytes: float
    """At 4,096 positions."""
    naive_peak_bytes: float
    chunked_cpu_s: float
    """At the positions measured; medians over turns."""
    naive_cpu_s: float


def run(*, quick: bool) -> dict:
    """Measures every implementation."""
    return measure(QUICK, num_rounds=2) if quick else measure(FULL, num_rounds=3)


def measure(workload: LossWorkload, *, num_rounds: int) -> dict:
    """All divergences; the worst of each ratio on top."""
    argument = dataclasses.asdict(workload) | {"num_rounds": num_rounds}
    with Child("tests.bench.loss_arms", argument) as child:
        turns = child.answer(timeout_s=_TIMEOUT_S)
    divergences = {name: _figures(turns, name, workload) for name in DIVERGENCES}
    return {
        "chunked_peak_ratio": max(d["chunked_peak_ratio"] for d in divergences.values()),
        "chunked_time_ratio": max(d["chunked_time_ratio"] for d in divergences.values()),
        "divergences": divergences,
        "liger_jsd": _liger(turns, workload),
        "num_positions": NUM_POSITIONS,
        "num_positions_measured": workload.num_positions,
        "workload": dataclasses.asdict(workload),
        "turns": turns,
    }


def _figures(turns: dict, divergence: str, workload: LossWorkload) -> DivergenceFigures:
    naive, chunked = turns[f"naive_{divergence}"], turns[f"chunked_{divergence}"]
    for one, other in zip(naive, chunked, strict=True):
        # Else something else would be timed.
        assert abs(one["value"] - other["value"]) < 1e-3 * one["value"]
    chunked_bytes = peak_bytes(chunked, workload, is_chunked=True)
    naive_bytes = peak_bytes(naive, workload, is_chunked=False)
    return {
        "chunked_peak_ratio": chunked_bytes / naive_bytes,
        "chunked_time_ratio": _time_ratio(chunked, naive),
        "chunked_peak_bytes": chunked_bytes,
        "naive_peak_bytes": naive_bytes,
        "chunked_cpu_s": _median_s(chunked),
        "naive_cpu_s": _median_s(naive),
    }


def peak_bytes(turns: list[dict], workload: LossWorkload, *, is_chunked: bool) -> float:
    """Extra memory at 4,096 positions, from the first turn, whose heap was fresh.

    The gradient of the head does not grow with positions. All else of the naive loss does; of a
    chunked one only the gradient of the hidden states.
    """
    measured = turns[0]["extra_bytes"]
    row_bytes = workload.hidden_size * _FLOAT_BYTES
    if is_chunked:
        return measured + (NUM_POSITIONS - workload.num_positions) * row_bytes
    head_bytes = workload.vocab_size * row_bytes
    return head_bytes + (measured - head_bytes) * NUM_POSITIONS / workload.num_positions


def _liger(turns: dict, workload: LossWorkload) -> dict | None:
    if "liger_jsd" not in turns:
        return None
    liger, naive = turns["liger_jsd"], turns["naive_jsd"]
    liger_bytes = peak_bytes(liger, workload, is_chunked=True)
    return {
        "peak_ratio": liger_bytes / peak_bytes(naive, workload, is_chunked=False),
        "time_ratio": _time_ratio(liger, naive),
        "peak_bytes": liger_bytes,
        "cpu_s": _median_s(liger),
    }


def _time_ratio(over: list[dict], under: list[dict]) -> float:
    """Median over rounds: the turns of one round follow each other."""
    return float(np.median([a["cpu_s"] / b["cpu_s"] for a, b in zip(over, under, strict=True)]))


def _median_s(turns: list[dict]) -> float:
    return float(np.median([turn["cpu_s"] for turn in turns]))


def table(result: dict) -> str:
    """The result to read."""
    workload = result["workload"]
    lines = [
        f"loss: V = {workload['vocab_size']}, D = {workload['hidden_size']}, peaks at "
        f"{NUM_POSITIONS} positions, times at {result['num_positions_measured']}, one core",
        "",
        f"{'divergence':12} {'peak, GB':>9} {'naive':>7} {'ratio':>7} {'CPU s':>7} {'naive':>7} "
        f"{'ratio':>7}",
    ]
    for name, d in result["divergences"].items():
        lines.append(
            f"{name:12} {d['chunked_peak_bytes'] / 1e9:>9.2f} {d['naive_peak_bytes'] / 1e9:>7.2f} "
            f"{d['chunked_peak_ratio']:>7.3f} {d['chunked_cpu_s']:>7.2f} {d['naive_cpu_s']:>7.2f} "
            f"{d['chunked_time_ratio']:>7.2f}"
        )
    liger = result["liger_jsd"]
    if liger is None:
        lines.append("Liger-Kernel is not installed: pip install -e '.[bench]'")
    else:
        lines.append(
            f"{'Liger: jsd':12} {liger['peak_bytes'] / 1e9:>9.2f} {'':7} "
            f"{liger['peak_ratio']:>7.3f} {liger['cpu_s']:>7.2f} {'':7} {liger['time_ratio']:>7.2f}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"chunked_peak_ratio  {result['chunked_peak_ratio']:.3f}  aim <= {MAX_PEAK_RATIO}",
            f"chunked_time_ratio  {result['chunked_time_ratio']:.3f}  aim <= {MAX_TIME_RATIO}",
        ]
    )


def figure(result: dict) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(9, 3.4), layout="constrained")
    kinds = (("peak", MAX_PEAK_RATIO), ("time", MAX_TIME_RATIO))
    for axes, (kind, aim) in zip(drawing.subplots(1, 2), kinds, strict=True):
        ratios = {name: d[f"chunked_{kind}_ratio"] for name, d in result["divergences"].items()}
        if result["liger_jsd"] is not None:
            ratios["Liger: jsd"] = result["liger_jsd"][f"{kind}_ratio"]
        axes.bar(list(ratios), list(ratios.values()), color="#0072b2")
        axes.axhline(aim, color="black", linestyle="--", linewidth=1, label="aim")
        axes.set_ylabel(f"{kind}, over all logits at once")
        axes.legend()
    return drawing
