import platform
import subprocess
import sys

import pytest

# Joins, as messages are made: buffers of about a megabyte, a few of them alive at a time.
_COUNT_FAULTS = """
import resource, sys
from protos import malloc
if sys.argv[1] == "keep":
    assert malloc.keep_freed_memory()
piece, alive = bytes(1 << 24), []
for index in range(60):
    if index == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    alive = [*alive[-3:], b"".join([b"head", piece])]
    if index % 10 == 9:
        alive = []
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_buffers_are_not_faulted_in_anew() -> None:
    faults = {}
    for mode in ("default", "keep"):
        command = [sys.executable, "-c", _COUNT_FAULTS, mode]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={})
        faults[mode] = int(run.stdout)
    assert faults["keep"] < faults["default"] / 10
