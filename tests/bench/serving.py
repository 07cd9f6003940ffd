"""How much of its device a served teacher turns into targets, and what the alternatives make of it.

- `serving_efficiency`: tokens a second of asked-for rows through gRPC under a ragged open mix of
  eight clients, over what the bare model does with ideal batches of equal rows, head included for
  the same share of positions. Engine and bare loop have one core, front and clients the other.
- `vs_request_batching`: against the same server with batches of whole requests that run to their
  end together, same mix.
- `vs_in_process`: collected positions a second against the original scheme in the trainer's process
  (`baselines/original.py`), on P2 trajectories of equal length collected every few steps.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any, TypedDict

from matplotlib.figure import Figure

from tests.bench.processes import Child
from tests.bench.serving_model import SIZES, ModelSize

NUM_CLIENTS = 8
_BATCH_TOKENS = (352, 704, 1408, 2816, 5632)
_PARTS = ("forward", "head", "encode", "sample", "other in steps", "between steps")


class SizeResult(TypedDict):
    """Of one model."""

    serving_efficiency: float
    vs_request_batching: float
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
    """Measures the demo's size; without `quick`, a 100 M model too, and longer."""
    names = ["demo"] if quick else ["demo", "100m"]
    sizes = {
        name: measure(SIZES[name], window_s=4.0 if quick else 30.0, num_rounds=1 if quick else 3)
        for name in names
    }
    largest = sizes[names[-1]]
    return {
        "serving_efficiency": largest["serving_efficiency"],
        "vs_request_batching": largest["vs_request_batching"],
        "vs_in_process": largest["vs_in_process"],
        "sizes": sizes,
    }


def measure(size: ModelSize, *, window_s: float, num_rounds: int) -> SizeResult:
    """Measures one model, the arms after one another in each round."""
    task = {"size": size.as_json(), "seconds": window_s / 4}
    search = {"task": "bare", "batch_tokens": _BATCH_TOKENS, "head_share": 0.3}
    speeds = _answer(task | search)["tokens_per_s"]
    batch_tokens = int(max(speeds, key=lambda name: speeds[name]))
    rounds = [_round(size, batch_tokens, window_s=window_s) for _ in range(num_rounds)]
    return {
        name: statistics.median(one[name] for one in rounds)  # type: ignore[literal-required]
        if name != "share_of_time"
        else rounds[-1]["share_of_time"]
        for name in rounds[0]
    }  # type: ignore[return-value]


def _round(size: ModelSize, batch_tokens: int, *, window_s: float) -> SizeResult:
    step = _served(size, "step", batch_tokens, window_s=window_s)
    whole = _served(size, "request", batch_tokens, window_s=window_s)
    original = _served(size, "step", batch_tokens, window_s=window_s, is_original=True)
    head_share = step["num_head_positions"] / step["num_forward_tokens"]
    task: dict[str, Any] = {"size": size.as_json(), "seconds": window_s}
    bare = _answer(
        task | {"task": "bare", "batch_tokens": [batch_tokens], "head_share": head_share}
    )
    in_process = _answer(task | {"task": "original"})
    served = step["num_forward_tokens"] / step["seconds"]
    by_request = whole["num_forward_tokens"] / whole["seconds"]
    bare_speed = bare["tokens_per_s"][str(batch_tokens)]
    positions = original["num_target_positions"] / original["seconds"]
    return {
        "serving_efficiency": served / bare_speed,
        "vs_request_batching": served / by_request,
        "vs_in_process": positions / in_process["positions_per_s"],
        "bare_tokens_per_s": bare_speed,
        "served_tokens_per_s": served,
        "request_batching_tokens_per_s": by_request,
        "served_positions_per_s": positions,
        "in_process_positions_per_s": in_process["positions_per_s"],
        "batch_tokens": batch_tokens,
        "padding_fraction": 1 - step["num_forward_tokens"] / step["num_padded_tokens"],
        "request_batching_padding_fraction": 1
        - whole["num_forward_tokens"] / whole["num_padded_tokens"],
        "rows_per_forward": step["num_forward_rows"] / step["num_forwards"],
        "head_positions_per_token": head_share,
        "share_of_time": _shares(step),
    }


def _shares(counted: dict[str, float]) -> dict[str, float]:
    seconds = counted["seconds"]
    named = [counted[f"{name}_s"] for name in _PARTS[:4]]
    values = [*named, counted["busy_s"] - sum(named), seconds - counted["busy_s"]]
    return {name: value / seconds for name, value in zip(_PARTS, values, strict=True)}


def _served(
    size: ModelSize,
    batching: str,
    batch_tokens: int,
    *,
    window_s: float,
    is_original: bool = False,
) -> dict[str, float]:
    """What the server's counters rose by while all clients asked."""
    options = {"size": size.as_json(), "batching": batching, "max_batch_tokens": batch_tokens}
    with Child("tests.bench.serving_server", options) as server:
        address = server.first_line().rpartition(" ")[2]
        with clients(address, size, is_original=is_original):
            time.sleep(window_s / 4)  # the first rounds of all clients come at once
            before = counters(server)
            time.sleep(window_s)
            after = counters(server)
    rose = {
        name: after[name] - before[name] for name in after if isinstance(after[name], int | float)
    }
    return rose | {"seconds": rose["now_s"]}


@contextlib.contextmanager
def clients(address: str, size: ModelSize, *, is_original: bool) -> Iterator[None]:
    """All clients ask during the block, each from a process of its own."""
    with contextlib.ExitStack() as stack:
        children = []
        for seed in range(NUM_CLIENTS):
            mix = {
                "vocab_size": size.vocab_size,
                "max_length": size.max_length,
                "seed": seed,
                "is_original": is_original,
            }
            child = Child("tests.bench.serving_client", {"address": address, "mix": mix})
            children.append(stack.enter_context(child))
        for child in children:
            assert child.first_line() == "asking"
        yield


def counters(server: Child) -> dict[str, Any]:
    """The totals of a `serving_server`, with its clocks."""
    server.tell("counters")
    totals: dict[str, Any] = json.loads(server.first_line())
    return totals


def _answer(options: dict[str, Any]) -> dict[str, Any]:
    with Child("tests.bench.serving_bare", options) as child:
        return child.answer(timeout_s=600.0)


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
