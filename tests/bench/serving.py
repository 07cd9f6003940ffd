"""How much of its device a served teacher turns into targets, and what the alternatives make of it.

- `serving_efficiency`: tokens a second of asked-for rows through gRPC under a ragged open mix of
  eight clients, over what the bare model does with ideal batches of equal rows, head included for
  the same share of positions. Engine and bare loop have one core, front and clients the other.
- `vs_request_batching`: against the same server with batches of whole requests of one kind that run
  to their end together in one padded tensor, same mix; `vs_lean_request_batching` where rows that
  have ended leave the tensor.
- `vs_in_process`: collected positions a second against the original scheme in the trainer's process
  (`baselines/original.py`), on P2 trajectories of equal length collected every few steps.
"""

import statistics
from typing import Any, NotRequired, TypedDict

from matplotlib.figure import Figure

from tests.bench.processes import Child
from tests.bench.serving_arms import Arms, start_arms
from tests.bench.serving_model import SIZES, ModelSize

_PARTS = ("forward", "head", "encode", "sample", "other in steps", "between steps")
_BATCHINGS = ("step", "request", "lean request")
_STEP_TOKENS = 1408


class SizeResult(TypedDict):
    """Of one model."""

    serving_efficiency: float
    vs_request_batching: float
    vs_lean_request_batching: NotRequired[float]
    vs_in_process: float
    bare_tokens_per_s: float
    served_tokens_per_s: float
    request_batching_tokens_per_s: float
    served_positions_per_s: float
    in_process_positions_per_s: float
    batch_tokens: int
    padding_fraction: float
    request_batching_padding_fraction: float
    rows_per_forward: float
    head_positions_per_token: float
    share_of_time: dict[str, float]


Result = dict[str, Any]


def run(*, quick: bool) -> Result:
    """Measures the demo's size; without `quick`, a 100 M model and a step of Open-dCoder's too."""
    if quick:
        sizes = {"demo": measure(SIZES["demo"], num_rounds=1, **_QUICK)}
        step = None
    else:
        sizes = {name: measure(SIZES[name], num_rounds=3, **plan) for name, plan in _FULL.items()}
        step = step_efficiency(SIZES["open-dcoder-0.5b"], max_tokens=_STEP_TOKENS)
    largest = list(sizes.values())[-1]
    return {
        "serving_efficiency": largest["serving_efficiency"],
        "vs_request_batching": largest["vs_request_batching"],
        "vs_in_process": largest["vs_in_process"],
        "sizes": sizes,
        "open_dcoder_step": step,
    }


class Plan(TypedDict):
    """How long and at which sizes."""

    window_s: float
    max_batch_tokens: int
    """Of every server's step."""
    bare_tokens: tuple[int, ...]
    """Sizes of the bare model's batch to search."""


_QUICK: Plan = {"window_s": 5.0, "max_batch_tokens": 2816, "bare_tokens": (704, 2816)}
_FULL: dict[str, Plan] = {
    "demo": {
        "window_s": 12.0,
        "max_batch_tokens": 2816,
        "bare_tokens": (352, 704, 1408, 2816, 5632, 8448),
    },
    "100m": {"window_s": 40.0, "max_batch_tokens": 1408, "bare_tokens": (704, 1408, 2816)},
}


def measure(
    size: ModelSize,
    *,
    num_rounds: int,
    window_s: float,
    max_batch_tokens: int,
    bare_tokens: tuple[int, ...],
) -> SizeResult:
    """Measures one model, the arms after one another in each round."""
    batchings = _BATCHINGS if num_rounds > 1 else _BATCHINGS[:2]
    with start_arms(size, batchings, max_batch_tokens=max_batch_tokens) as arms:
        search = arms.bare(
            task="bare",
            batch_tokens=bare_tokens,
            head_share=0.3,
            seconds=window_s / 4 / len(bare_tokens),
        )
        speeds = search["tokens_per_s"]
        best = int(max(speeds, key=lambda name: speeds[name]))
        rounds = [
            _round(arms, best, batchings=batchings, window_s=window_s) for _ in range(num_rounds)
        ]
    return {
        name: statistics.median(one[name] for one in rounds)  # type: ignore[literal-required]
        if name != "share_of_time"
        else rounds[-1]["share_of_time"]
        for name in rounds[0]
    }  # type: ignore[return-value]


def step_efficiency(size: ModelSize, *, max_tokens: int) -> dict[str, float]:
    """One step of an engine against the bare model, for a model that is slow to serve here."""
    with Child("tests.bench.serving_step", size.as_json() | {"max_tokens": max_tokens}) as child:
        step: dict[str, float] = child.answer(timeout_s=1200.0)
    served = step["tokens"] / step["seconds"]
    return step | {
        "step_efficiency": served / step["bare_tokens_per_s"],
        "served_tokens_per_s": served,
    }


def _round(
    arms: Arms, bare_tokens: int, *, batchings: tuple[str, ...], window_s: float
) -> SizeResult:
    counted = {name: arms.served(name, window_s=window_s) for name in batchings}
    step, whole = counted["step"], counted["request"]
    head_share = step["num_head_positions"] / step["num_forward_tokens"]
    bare = arms.bare(
        task="bare", batch_tokens=[bare_tokens], head_share=head_share, seconds=window_s / 2
    )
    original = arms.served("step", window_s=window_s / 2, is_original=True)
    in_process = arms.bare(task="original", seconds=window_s / 2)
    speeds = {name: rose["num_forward_tokens"] / rose["seconds"] for name, rose in counted.items()}
    bare_speed = bare["tokens_per_s"][str(bare_tokens)]
    positions = original["num_target_positions"] / original["seconds"]
    result: SizeResult = {
        "serving_efficiency": speeds["step"] / bare_speed,
        "vs_request_batching": speeds["step"] / speeds["request"],
        "vs_in_process": positions / in_process["positions_per_s"],
        "bare_tokens_per_s": bare_speed,
        "served_tokens_per_s": speeds["step"],
        "request_batching_tokens_per_s": speeds["request"],
        "served_positions_per_s": positions,
        "in_process_positions_per_s": in_process["positions_per_s"],
        "batch_tokens": bare_tokens,
        "padding_fraction": 1 - step["num_forward_tokens"] / step["num_padded_tokens"],
        "request_batching_padding_fraction": 1
        - whole["num_forward_tokens"] / whole["num_padded_tokens"],
        "rows_per_forward": step["num_forward_rows"] / step["num_forwards"],
        "head_positions_per_token": head_share,
        "share_of_time": _shares(step),
    }
    if "lean request" in speeds:
        result["vs_lean_request_batching"] = speeds["step"] / speeds["lean request"]
    return result


def _shares(counted: dict[str, float]) -> dict[str, float]:
    seconds = counted["seconds"]
    named = [counted[f"{name}_s"] for name in _PARTS[:4]]
    values = [*named, counted["busy_s"] - sum(named), seconds - counted["busy_s"]]
    return {name: value / seconds for name, value in zip(_PARTS, values, strict=True)}


def table(result: Result) -> str:
    """The result as text to read."""
    lines = []
    for name, size in result["sizes"].items():
        lines.append(f"{name}:")
        for key, value in size.items():
            if key == "share_of_time":
                lines += [f"  time: {part:<16} {share:7.1%}" for part, share in value.items()]
            else:
                lines.append(f"  {key:<34} {value:10.3f}")
    if result["open_dcoder_step"]:
        lines.append("open-dcoder-0.5b, one step:")
        lines += [f"  {key:<34} {value:10.3f}" for key, value in result["open_dcoder_step"].items()]
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """Where the engine's time goes, as a stacked bar a size, beside the three ratios."""
    drawing = Figure(figsize=(9, 4), layout="constrained")
    bars, ratios = drawing.subplots(1, 2)
    for index, size in enumerate(result["sizes"].values()):
        bottom = 0.0
        for color, (part, share) in enumerate(size["share_of_time"].items()):
            bars.bar(
                index, share, bottom=bottom, color=f"C{color}", label=part if not index else None
            )
            bottom += share
        names = ("serving_efficiency", "vs_request_batching", "vs_in_process")
        ratios.bar(
            [place + 0.35 * index for place in range(3)], [size[name] for name in names], width=0.3
        )
    bars.set_xticks(range(len(result["sizes"])), list(result["sizes"]))
    bars.set_ylabel("share of the engine's time")
    bars.legend()
    ratios.set_xticks(range(3), ["serving\nefficiency", "vs request\nbatching", "vs in\nprocess"])
    ratios.axhline(1, color="black", linewidth=0.5)
    return drawing
