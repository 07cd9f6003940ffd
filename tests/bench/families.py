"""How exactly every family gives the logits of its publication, on small random checkpoints."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TypedDict

import torch
from matplotlib.figure import Figure

from tests.fixtures import conformance
from tests.fixtures.table import family_fixtures


class FamilyResult(TypedDict):
    """See `conformance.Conformance`."""

    logit_max_err: float
    bidirectional: bool
    aligned: bool
    batch_invariance_err: float
    conforms: bool


class Result(TypedDict):
    """All families, and the worst of them."""

    families: dict[str, FamilyResult]
    max_logit_err: float
    max_batch_invariance_err: float
    num_families: int
    families_failing: int


def run(*, quick: bool) -> Result:
    """Builds, loads and measures every fixture; a quick run is no shorter."""
    torch.set_num_threads(1)  # threads cost more than they give on tiny tensors
    families: dict[str, FamilyResult] = {}
    for name, fixture in family_fixtures().items():
        with tempfile.TemporaryDirectory() as scratch:
            found = conformance.measure(fixture, Path(scratch) / name)
        families[name] = {**dataclasses.asdict(found), "conforms": found.conforms}  # type: ignore[typeddict-item]
    return {
        "families": families,
        "max_logit_err": max(found["logit_max_err"] for found in families.values()),
        "max_batch_invariance_err": max(
            found["batch_invariance_err"] for found in families.values()
        ),
        "num_families": len(families),
        "families_failing": sum(not found["conforms"] for found in families.values()),
    }


def table(result: Result) -> str:
    """The result to read."""
    lines = [
        "families: logits against an independent float64 implementation of each publication",
        f"(aim <= {conformance.TOLERANCE:g})",
        "",
        f"{'family':22} {'logits':>9} {'batched':>9}  attention  alignment",
    ]
    for name, found in result["families"].items():
        attention = "right" if found["bidirectional"] else "WRONG"
        alignment = "right" if found["aligned"] else "WRONG"
        lines.append(
            f"{name:22} {found['logit_max_err']:>9.1e} {found['batch_invariance_err']:>9.1e}  "
            f"{attention:9}  {alignment}"
        )
    lines.append(f"\n{result['families_failing']} of {result['num_families']} fail")
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """The result to look at."""
    names = list(result["families"])
    drawing = Figure(figsize=(7, 1 + 0.35 * len(names)), layout="constrained")
    axes = drawing.subplots()
    for offset, key, label in (
        (-0.2, "logit_max_err", "against the reference"),
        (0.2, "batch_invariance_err", "batched against alone"),
    ):
        widths = [result["families"][name][key] for name in names]  # type: ignore[literal-required]
        places = [place + offset for place in range(len(names))]
        axes.barh(places, widths, height=0.38, label=label)
    axes.axvline(conformance.TOLERANCE, color="black", linestyle="--", linewidth=1, label="aim")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("largest difference of a logit")
    axes.set_title("Families against their references (float32 against float64)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.05), ncols=3, frameon=False)
    return drawing
