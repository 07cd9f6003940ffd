"""Forks writers and kills each at a random moment; in a process without threads of its own.

Prints a JSON list: for each writer how many units it had added, and how many the store then had.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator

from student_trainer.store import StoreReader, StoreWriter
from student_trainer.store.verify import verify
from tests.student_trainer.store.test_store import IDENTITY, NUM_UNITS, UNITS_PER_SHARD, unit

MAX_DELAY_S = 0.03


def write_missing(folder: str) -> Iterator[int]:
    """Writes what the store misses; yields how many units it had and were added."""
    max_shard_bytes = UNITS_PER_SHARD * unit(0).num_bytes
    with StoreWriter(folder, IDENTITY, max_shard_bytes=max_shard_bytes) as writer:
        with StoreReader(folder) as reader:
            missing = [number for number in range(NUM_UNITS) if not reader.find(unit(number).key)]
        for number in missing:
            writer.add(unit(number))
            yield NUM_UNITS - len(missing) + 1 + missing.index(number)
        writer.finish()


def killed(folder: str, *, delay_s: float) -> int:
    """How many units the store had and a writer added before it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for total in write_missing(folder):
            os.write(writing, bytes([total]))
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # from here on it writes
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    rest = os.read(reading, NUM_UNITS)
    os.close(reading)
    return max(rest, default=0)


def main(folder: str, num_kills: int) -> None:
    """Kills, looks, and at last lets one finish."""
    found = []
    for seed in range(num_kills):
        added = killed(folder, delay_s=random.Random(seed).uniform(0, MAX_DELAY_S))
        assert verify(folder) == []
        with StoreReader(folder) as reader:
            found.append((added, len(reader)))
    list(write_missing(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
