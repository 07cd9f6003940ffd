"""What a remote teacher costs the trainer: time of a step, and peak memory.

`client_overhead` is the time of a distillation step whose targets come at once, over the real wire,
from a server without a model, over the time of a step on the data alone (alpha 0). The loss's own
arithmetic is in it: `kd_arithmetic` is the same ratio with the same targets already in memory. How
a step is timed, and why so, is in `side_by_side`.

`trainer_rss_ratio` is the peak memory of a trainer with a real remote teacher of eight times its
student's size over that of the same run on the data alone; `in_process_rss_ratio` is the same with
the teacher inside the trainer.
"""

import dataclasses
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.processes import Child
from tests.bench.workload import Schedule, Workload

ENCODINGS = ("hidden", "top_k")
DEFAULT_ENCODING = "hidden"
MAX_CLIENT_OVERHEAD = 1.05
MAX_TRAINER_RSS_RATIO = 1.15
QUICK = Schedule(num_warmup=1, max_steps=40, budget_s=12.0)
FULL = Schedule(num_warmup=3, max_steps=80, budget_s=120.0)
QUICK_MEMORY_STEPS = 2  # the optimizer's state is there from the second on
FULL_MEMORY_STEPS = 20
WIDE_VOCABULARY = Workload(vocab_size=8192)
_TIMEOUT_S = 900.0
_NUM_DRAWS = 2000
_MIB = 2**20


class EncodingFigures(TypedDict):
    """Ratios of the times of steps on the same states, medians over steps."""

    client_overhead: float
    client_overhead_ci95: list[float]
    kd_arithmetic: float
    kd_arithmetic_ci95: list[float]
    remote_over_in_memory: float
    remote_over_in_memory_ci95: list[float]
    target_bytes_per_position: float


class StepFigures(TypedDict):
    """What the step times come to."""

    client_overhead: float
    """Of the default encoding."""
    encodings: dict[str, EncodingFigures]
    num_steps: int
    """Counted, of every trainer."""
    is_pinned: bool
    median_step_s: dict[str, float]
    median_wait_s: dict[str, float]
    step_s: dict[str, list[float]]


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
    """Measures steps and memory; in full also with a vocabulary that takes more of the student."""
    schedule = QUICK if quick else FULL
    num_steps = QUICK_MEMORY_STEPS if quick else FULL_MEMORY_STEPS
    result = measure(Workload(), schedule, num_memory_steps=num_steps)
    if not quick:
        result["wide_vocabulary"] = measure(WIDE_VOCABULARY, schedule, num_memory_steps=num_steps)
    return result


def measure(workload: Workload, schedule: Schedule, *, num_memory_steps: int) -> dict:
    """Everything about one training run."""
    fields = dataclasses.asdict(workload)
    # It imports and writes checkpoints while the timed trainers do their imports, then waits.
    with Child("tests.bench.memory", {"workload": fields, "num_steps": num_memory_steps}) as child:
        step = step_figures(workload, schedule)
        child.tell("go")
        memory = memory_figures(child.answer(timeout_s=_TIMEOUT_S))
    return {
        "client_overhead": step["client_overhead"],
        "trainer_rss_ratio": memory["trainer_rss_ratio"],
        "in_process_rss_ratio": memory["in_process_rss_ratio"],
        "step": step,
        "memory": memory,
        "workload": fields,
    }


def step_figures(workload: Workload, schedule: Schedule) -> StepFigures:
    """Times steps of trainers against a server of its own."""
    targets = workload.instant_targets()
    argument = {"workload": dataclasses.asdict(workload), "schedule": dataclasses.asdict(schedule)}
    with (
        Child("tests.bench.instant_server", dataclasses.asdict(targets)) as server,
        Child("tests.bench.step_time", argument) as trainers,
    ):
        trainers.tell(server.first_line())
        times = trainers.answer(timeout_s=_TIMEOUT_S)
    step_s, wait_s = times["step_s"], times["wait_s"]
    encodings = {
        encoding: _encoding_figures(
            step_s, encoding, target_bytes_per_position=targets.bytes_per_position(encoding)
        )
        for encoding in ENCODINGS
    }
    return {
        "client_overhead": encodings[DEFAULT_ENCODING]["client_overhead"],
        "encodings": encodings,
        "num_steps": len(step_s["student_only"]),
        "is_pinned": times["is_pinned"],
        "median_step_s": {name: float(np.median(times)) for name, times in step_s.items()},
        "median_wait_s": {name: float(np.median(times)) for name, times in wait_s.items()},
        "step_s": step_s,
    }


def _encoding_figures(
    step_s: dict[str, list[float]], encoding: str, *, target_bytes_per_position: float
) -> EncodingFigures:
    alone = step_s["student_only"]
    remote, memory = step_s[f"remote_{encoding}"], step_s[f"memory_{encoding}"]
    return {
        "client_overhead": _ratio(remote, alone),
        "client_overhead_ci95": _ratio_ci95(remote, alone),
        "kd_arithmetic": _ratio(memory, alone),
        "kd_arithmetic_ci95": _ratio_ci95(memory, alone),
        "remote_over_in_memory": _ratio(remote, memory),
        "remote_over_in_memory_ci95": _ratio_ci95(remote, memory),
        "target_bytes_per_position": target_bytes_per_position,
    }


def _ratio(over: list[float], under: list[float]) -> float:
    return float(np.median(np.divide(over, under)))


def _ratio_ci95(over: list[float], under: list[float]) -> list[float]:
    """Of the median, by the percentile bootstrap."""
    ratios_N = np.divide(over, under)
    draws_BN = np.random.default_rng(0).choice(ratios_N, size=(_NUM_DRAWS, len(ratios_N)))
    return [float(edge) for edge in np.quantile(np.median(draws_BN, axis=1), (0.025, 0.975))]


def memory_figures(peaks: dict[str, int]) -> MemoryFigures:
    """Ratios to the trainer that has no teacher."""
    by_run = {name: peaks[f"{name}_bytes"] for name in ("student_only", "remote", "in_process")}
    above = {name: peak - peaks["imports_bytes"] for name, peak in by_run.items()}
    return {
        "trainer_rss_ratio": by_run["remote"] / by_run["student_only"],
        "in_process_rss_ratio": by_run["in_process"] / by_run["student_only"],
        "trainer_rss_ratio_above_imports": above["remote"] / above["student_only"],
        "in_process_rss_ratio_above_imports": above["in_process"] / above["student_only"],
        "peak_rss_mib": {name: peak / _MIB for name, peak in by_run.items()},
        "imports_mib": peaks["imports_bytes"] / _MIB,
        "num_student_parameters": peaks["num_student_parameters"],
        "num_teacher_parameters": peaks["num_teacher_parameters"],
    }


def table(result: dict) -> str:
    """The result to read."""
    lines = _table(result)
    if "wide_vocabulary" in result:
        vocab_size = result["wide_vocabulary"]["workload"]["vocab_size"]
        lines += ["", f"With a vocabulary of {vocab_size}, for comparison:", ""]
        lines += _table(result["wide_vocabulary"])
    return "\n".join(lines)


def _table(result: dict) -> list[str]:
    step, memory = result["step"], result["memory"]
    student_ms = 1000 * step["median_step_s"]["student_only"]
    lines = [
        f"overhead: a distillation step over a step on the data alone ({student_ms:.0f} ms), "
        f"{step['num_steps']} steps",
        "",
        f"{'encoding':10} {'targets':22} {'ratio':>6}   95 %",
    ]
    rows = (
        ("client_overhead", "from a server, at once"),
        ("kd_arithmetic", "already in memory"),
        ("remote_over_in_memory", "the one over the other"),
    )
    for encoding, figures in step["encodings"].items():
        for key, label in rows:
            low, high = figures[f"{key}_ci95"]
            lines.append(f"{encoding:10} {label:22} {figures[key]:>6.3f}   {low:.3f} to {high:.3f}")
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in memory["peak_rss_mib"].items())
    return [
        *lines,
        "",
        f"client_overhead    {result['client_overhead']:.3f}  aim <= {MAX_CLIENT_OVERHEAD}",
        f"trainer_rss_ratio  {result['trainer_rss_ratio']:.3f}  aim <= {MAX_TRAINER_RSS_RATIO}; "
        f"with the teacher in the process {result['in_process_rss_ratio']:.3f}",
        f"peak memory in MiB: {peaks}; {memory['imports_mib']:.0f} of each are imports",
    ]


def figure(result: dict) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(3, 2))
    _draw_steps(left, result["step"])
    _draw_memory(right, result["memory"])
    return drawing


def _draw_steps(axes: Axes, step: StepFigures) -> None:
    alone = step["step_s"]["student_only"]
    names = [name for name in step["step_s"] if name != "student_only"]
    ratios = [np.divide(step["step_s"][name], alone) for name in names]
    labels = [name.replace("_", "\n", 1) for name in names]
    axes.boxplot(ratios, tick_labels=labels, showfliers=False)
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.axhline(MAX_CLIENT_OVERHEAD, color="black", linestyle="--", linewidth=1, label="aim")
    axes.set_ylabel("step time over student-only")
    axes.set_title(f"{step['num_steps']} steps")
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
