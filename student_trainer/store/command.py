"""`distill store verify|stats|merge`: looks at stores and joins them.

Exit codes: 0 done, 1 failed or something is damaged, 2 misused.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from student_trainer.store.columns import RAGGED
from student_trainer.store.errors import StoreError
from student_trainer.store.merge import merge
from student_trainer.store.reader import StoreReader
from student_trainer.store.verify import verify

EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the arguments say; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (StoreError, OSError) as error:
        print(f"distill store {options.command}: {error}", file=sys.stderr)
        return EXIT_FAILED


def stats(url: str) -> dict[str, object]:
    """What a store holds and how many bytes of each column a position takes."""
    with StoreReader(url) as reader:
        num_bytes: dict[str, int] = {}
        for shard in reader.shards:
            for name, size in shard.column_bytes().items():
                column = name if name in RAGGED else "tables"
                num_bytes[column] = num_bytes.get(column, 0) + size
        counts = reader.counts
        num_positions = max(counts["num_positions"], 1)
        return {
            "store": reader.url,
            "finished": reader.finished,
            **counts,
            "num_shards": len(reader.entries),
            "bytes_per_position": round(counts["num_bytes"] / num_positions, 2),
            "bytes_per_position_by_column": {
                name: round(size / num_positions, 2)
                for name, size in sorted(num_bytes.items(), key=lambda item: -item[1])
                if size
            },
            **reader.identity.to_json(),
        }


def _verify(options: argparse.Namespace) -> int:
    problems = verify(options.store, drop=options.drop)
    for problem in problems:
        print(f"{problem.file}: {problem.reason} ({problem.num_units} units)")
    done = "given up" if options.drop else "damaged"
    total = sum(problem.num_units for problem in problems)
    print(f"{len(problems)} problems, {total} units {done}" if problems else "every byte is right")
    return EXIT_FAILED if problems and not options.drop else 0


def _stats(options: argparse.Namespace) -> int:
    print(json.dumps(stats(options.store), indent=2))
    return 0


def _merge(options: argparse.Namespace) -> int:
    index = merge(options.store, options.sources)
    print(f"{options.store}: {json.dumps(index.counts())} finished={index.finished}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill store", description="Looks at stores of targets."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify", help="find files and records that are damaged")
    verifying.add_argument("store", help="folder or fsspec URL")
    verifying.add_argument(
        "--drop",
        action="store_true",
        help="give damaged units up; `distill precompute` then makes them again",
    )
    verifying.set_defaults(run=_verify)
    counting = commands.add_parser("stats", help="print what a store holds, as JSON")
    counting.add_argument("store", help="folder or fsspec URL")
    counting.set_defaults(run=_stats)
    merging = commands.add_parser("merge", help="copy other stores in, and leave one index")
    merging.add_argument("store", help="the store that is added to; may be new")
    merging.add_argument("sources", nargs="*", help="stores to copy; none: only join the indices")
    merging.set_defaults(run=_merge)
    return parser
