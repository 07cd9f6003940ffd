"""`python -m tests.bench NAME|all [--quick] [--json PATH|-]`: measures what we claim.

Without --json a bench prints a table. `all` runs every bench and writes JSON and PNG plots below
bench_results/. Exit codes: 0 done, 2 misused; a bench that cannot run raises.
"""

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS_DIR = Path("bench_results")
DPI = 150


class Bench(Protocol):
    """What a module in the table has."""

    def run(self, *, quick: bool) -> Any:
        """Measures; the result is plain JSON."""

    def table(self, result: Any) -> str:
        """The result as text to read."""

    def figure(self, result: Any) -> Figure:
        """The result as a plot."""


# Names of modules, so that a bench's imports are paid for only where it runs.
BENCHES: dict[str, str] = {
    "families": "tests.bench.families",
    "parity": "tests.bench.parity",
    "overhead": "tests.bench.overhead",
    "resume": "tests.bench.resume",
    "store": "tests.bench.store",
    "serving": "tests.bench.serving",
    "loss": "tests.bench.loss",
    "wire": "tests.bench.wire",
    "latency": "tests.bench.latency",
    "scaling": "tests.bench.scaling",
    "approximate": "tests.bench.approximate",
}


def get_bench(name: str) -> Bench:
    """Looks a bench up by its name."""
    if name not in BENCHES:
        raise ValueError(f"unknown bench {name!r}; known: all, {', '.join(sorted(BENCHES))}")
    return cast(Bench, importlib.import_module(BENCHES[name]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the arguments name; returns the exit code."""
    options = _parse(arguments)
    try:
        names = list(BENCHES) if options.bench == "all" else [options.bench]
        benches = {name: get_bench(name) for name in names}
    except ValueError as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return 2
    results = {}
    for name, bench in benches.items():
        print(f"bench {name} quick={options.quick}", file=sys.stderr)
        # Servers print where they listen; standard output is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            results[name] = bench.run(quick=options.quick)
        if options.bench == "all":
            _write(name, bench, results[name], options.results_dir)
        if options.json is None:
            print(bench.table(results[name]) + "\n", flush=True)
    if options.json is not None:
        _write_json(results if options.bench == "all" else results[options.bench], options.json)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures what we claim.",
        epilog=f"benches: {', '.join(BENCHES)}",
    )
    parser.add_argument("bench", help="name of a bench, or all")
    parser.add_argument("--quick", action="store_true", help="less than 50 s on 2 cores")
    parser.add_argument("--json", metavar="PATH", help="write JSON there, - for standard output")
    parser.add_argument(
        "--results-dir", type=Path, default=RESULTS_DIR, help="folder that `all` writes to"
    )
    return parser.parse_args(arguments)


def _write(name: str, bench: Bench, result: object, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(result, str(folder / f"{name}.json"))
    drawing = bench.figure(result)
    FigureCanvasAgg(drawing)
    drawing.savefig(folder / f"{name}.png", dpi=DPI, facecolor="white")


def _write_json(result: object, path: str) -> None:
    text = json.dumps(result, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
