"""What a remote teacher costs the trainer: time of a step, and peak memory.

`client_overhead` is the time of a distillation step whose targets come at once, over the real wire,
from a server without a model, over the time of a step on the data alone (alpha 0). The loss's own
arithmetic is in it: `kd_arithmetic` is the same ratio with the same targets already in memory.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench import memory_runs
from tests.bench.interleaved import Schedule
from tests.bench.processes import Child
from tests.bench.workload import Workload

ENCODINGS = ("hidden", "top_k")
DEFAULT_ENCODING = "hidden"
MAX_CLIENT_OVERHEAD = 1.05
MAX_TRAINER_RSS_RATIO = 1.15
MIN_CPU_SHARE = 0.97
"""Below it the trainer's core was also at work for others."""
QUICK = Schedule(num_warmup=1, num_rounds=40, budget_s=20.0)
FULL = Schedule(num_warmup=3, num_rounds=80, budget_s=120.0)
QUICK_MEMORY_STEPS = 2  # the optimizer's state is there from the second on
FULL_MEMORY_STEPS = 20
WIDE_VOCABULARY = Workload(vocab_size=8192)
_TIMEOUT_S = 900.0
_MIB = 2**20


class EncodingFigures(TypedDict):
    """Ratios of step times, medians over rounds; `_cpu` of the trainer's CPU time instead."""

    client_overhead: float
    client_overhead_ci95: list[float]
    client_overhead_cpu: float
    kd_arithmetic: float
    kd_arithmetic_cpu: float
    remote_over_in_memory: float
    remote_over_in_memory_cpu: float
    target_bytes_per_position: float


class StepFigures(TypedDict):
    """What the step times come to."""

    client_overhead: float
    """Of the default encoding."""
    encodings: dict[str, EncodingFigures]
    step_s: dict[str, float]
    teacher_wait_s: dict[str, float]
    num_rounds: int
    is_pinned: bool
    cpu_share: float
    """CPU time over wall time of the student-only steps; 1 on a quiet machine."""
    wall_s: dict[str, list[float]]
    cpu_s: dict[str, list[float]]


class MemoryFigures(TypedDict):
    """Peak resident memory, each trainer a process of its own."""

    trainer_rss_ratio: float
    in_process_rss_ratio: float
    trainer_rss_ratio_above_imports: float
    in_process_rss_ratio_above_imports: float
    peak_rss_mib: dict[str, float]
    imports_mib: float
    num_student_parameters: int
    num_teacher_parameters: int


def run(*, quick: bool) -> dict:
    """Measures steps first, alone on the machine, then memory; in full also a wide vocabulary."""
    schedule = QUICK if quick else FULL
    num_steps = QUICK_MEMORY_STEPS if quick else FULL_MEMORY_STEPS
    result = measure(Workload(), schedule, num_memory_steps=num_steps)
    if not quick:
        result["wide_vocabulary"] = measure(WIDE_VOCABULARY, schedule, num_memory_steps=num_steps)
    return result


def measure(workload: Workload, schedule: Schedule, *, num_memory_steps: int) -> dict:
    """Everything about one training run."""
    step = step_figures(workload, schedule)
    memory = memory_figures(memory_runs.measure(workload, num_steps=num_memory_steps))
    return {
        "client_overhead": step["client_overhead"],
        "trainer_rss_ratio": memory["trainer_rss_ratio"],
        "in_process_rss_ratio": memory["in_process_rss_ratio"],
        "step": step,
        "memory": memory,
        "workload": dataclasses.asdict(workload),
    }


def step_figures(workload: Workload, schedule: Schedule) -> StepFigures:
    """Times steps in a trainer of their own, against a server of its own."""
    targets = workload.instant_targets()
    with Child("tests.bench.instant_server", dataclasses.asdict(targets)) as server:
        argument = {
            "address": server.first_line(),
            "workload": dataclasses.asdict(workload),
            "schedule": dataclasses.asdict(schedule),
        }
        with Child("tests.bench.step_time", argument) as trainer:
            times = trainer.answer(timeout_s=_TIMEOUT_S)
    arms = times["arms"]
    encodings = {
        encoding: _encoding_figures(
            arms, encoding, target_bytes_per_position=targets.bytes_per_position(encoding)
        )
        for encoding in ENCODINGS
    }
    alone = arms["student_only"]
    return {
        "client_overhead": encodings[DEFAULT_ENCODING]["client_overhead"],
        "encodings": encodings,
        "step_s": {name: float(np.median(arm["wall_s"])) for name, arm in arms.items()},
        "teacher_wait_s": {
            name: float(np.median(arm["teacher_wait_s"])) for name, arm in arms.items()
        },
        "num_rounds": len(alone["wall_s"]),
        "is_pinned": times["is_pinned"],
        "cpu_share": float(np.sum(alone["cpu_s"]) / np.sum(alone["wall_s"])),
        "wall_s": {name: arm["wall_s"] for name, arm in arms.items()},
        "cpu_s": {name: arm["cpu_s"] for name, arm in arms.items()},
    }


def _encoding_figures(
    arms: dict, encoding: str, *, target_bytes_per_position: float
) -> EncodingFigures:
    alone, remote = arms["student_only"], arms[f"remote_{encoding}"]
    memory = arms[f"memory_{encoding}"]
    return {
        "client_overhead": _ratio(remote, alone, "wall_s"),
        "client_overhead_ci95": _ratio_ci95(remote, alone, "wall_s"),
        "client_overhead_cpu": _ratio(remote, alone, "cpu_s"),
        "kd_arithmetic": _ratio(memory, alone, "wall_s"),
        "kd_arithmetic_cpu": _ratio(memory, alone, "cpu_s"),
        "remote_over_in_memory": _ratio(remote, memory, "wall_s"),
        "remote_over_in_memory_cpu": _ratio(remote, memory, "cpu_s"),
        "target_bytes_per_position": target_bytes_per_position,
    }


def _ratios(over: dict, under: dict, key: str) -> np.ndarray:
    """Round by round: both arms had the same states, seconds apart."""
    return np.asarray(over[key]) / np.asarray(under[key])


def _ratio(over: dict, under: dict, key: str) -> float:
    return float(np.median(_ratios(over, under, key)))


def _ratio_ci95(over: dict, under: dict, key: str) -> list[float]:
    """Of the median, by the percentile bootstrap."""
    ratios_R = _ratios(over, under, key)
    draws_BR = np.random.default_rng(0).choice(ratios_R, size=(2000, len(ratios_R)))
    return [float(edge) for edge in np.quantile(np.median(draws_BR, axis=1), (0.025, 0.975))]


def memory_figures(peaks: memory_runs.Peaks) -> MemoryFigures:
    """Ratios to the trainer that has no teacher."""
    by_run = {
        "student_only": peaks.student_only_bytes,
        "remote": peaks.remote_bytes,
        "in_process": peaks.in_process_bytes,
    }
    above = {name: peak - peaks.imports_bytes for name, peak in by_run.items()}
    return {
        "trainer_rss_ratio": by_run["remote"] / by_run["student_only"],
        "in_process_rss_ratio": by_run["in_process"] / by_run["student_only"],
        "trainer_rss_ratio_above_imports": above["remote"] / above["student_only"],
        "in_process_rss_ratio_above_imports": above["in_process"] / above["student_only"],
        "peak_rss_mib": {name: peak / _MIB for name, peak in by_run.items()},
        "imports_mib": peaks.imports_bytes / _MIB,
        "num_student_parameters": peaks.num_student_parameters,
        "num_teacher_parameters": peaks.num_teacher_parameters,
    }


def table(result: dict) -> str:
    """The result to read."""
    lines = _table(result)
    if "wide_vocabulary" in result:
        vocab_size = result["wide_vocabulary"]["workload"]["vocab_size"]
        lines += ["", f"the same with a vocabulary of {vocab_size}:"]
        lines += _table(result["wide_vocabulary"])
    return "\n".join(lines)


def _table(result: dict) -> list[str]:
    step, memory = result["step"], result["memory"]
    lines = [
        f"overhead: a distillation step over a step on the data alone ({step['num_rounds']} rounds,"
        f" student-only step {1000 * step['step_s']['student_only']:.0f} ms)",
        "",
        f"{'':34} {'wall':>7} {'CPU':>7}",
    ]
    rows = (
        ("client_overhead", "targets from a server at once"),
        ("kd_arithmetic", "targets already in memory"),
        ("remote_over_in_memory", "the one over the other"),
    )
    for encoding, figures in step["encodings"].items():
        for key, label in rows:
            wall, cpu = figures[key], figures[f"{key}_cpu"]
            lines.append(f"{encoding:6} {label:27} {wall:>7.3f} {cpu:>7.3f}")
    if step["cpu_share"] < MIN_CPU_SHARE:
        lines.append(
            f"(the machine was busy: the trainer had {step['cpu_share']:.0%} of its core, so read "
            "the CPU column)"
        )
    low, high = step["encodings"][DEFAULT_ENCODING]["client_overhead_ci95"]
    lines += [
        "",
        f"client_overhead    {result['client_overhead']:.3f}  (95 %: {low:.3f} to {high:.3f}; "
        f"aim <= {MAX_CLIENT_OVERHEAD})",
        f"trainer_rss_ratio  {result['trainer_rss_ratio']:.3f}  (aim <= {MAX_TRAINER_RSS_RATIO}; "
        f"the teacher in the process: {result['in_process_rss_ratio']:.3f})",
        "peak memory, MiB: "
        + ", ".join(f"{name} {peak:.0f}" for name, peak in memory["peak_rss_mib"].items())
        + f"; {memory['imports_mib']:.0f} are imports",
    ]
    return lines


def figure(result: dict) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    _draw_steps(left, result["step"])
    _draw_memory(right, result["memory"])
    return drawing


def _draw_steps(axes: Axes, step: StepFigures) -> None:
    alone = step["wall_s"]["student_only"]
    names = [name for name in step["wall_s"] if name != "student_only"]
    ratios: Sequence[np.ndarray] = [np.divide(step["wall_s"][name], alone) for name in names]
    axes.boxplot(
        ratios, tick_labels=[name.replace("_", "\n", 1) for name in names], showfliers=False
    )
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.axhline(MAX_CLIENT_OVERHEAD, color="black", linestyle="--", linewidth=1, label="aim")
    axes.set_ylabel("step time over student-only")
    axes.set_title(f"A step, {step['num_rounds']} rounds in turn")
    axes.legend()


def _draw_memory(axes: Axes, memory: MemoryFigures) -> None:
    peaks = memory["peak_rss_mib"]
    axes.bar(list(peaks), list(peaks.values()), color="#0072b2")
    axes.axhline(memory["imports_mib"], color="grey", linewidth=1, label="imports alone")
    aim = MAX_TRAINER_RSS_RATIO * peaks["student_only"]
    axes.axhline(aim, color="black", linestyle="--", linewidth=1, label="aim for remote")
    axes.set_ylabel("peak memory of the trainer (MiB)")
    axes.set_title("Teacher 8 times the student")
    axes.legend()
