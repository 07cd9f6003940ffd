"""The last rank fails alone while the others wait for it in a collective."""

import sys

from student_trainer.parallel import start_parallel


def main() -> int:
    """Exit code 1 where this rank fails."""
    try:
        with start_parallel() as parallel:
            parallel.sum([1.0])
            if parallel.rank == parallel.world_size - 1:
                raise ValueError("the disk is full")
            parallel.sum([1.0])
    except ValueError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0
