"""Peak memory of one training run, in a process of its own.

`python -m tests.bench.peak_memory JSON`: "arguments" is the command line of
`student_trainer.train`; "teacher" is a checkpoint to hold in this very process, or null; with
"is_remote" the address of a teacher is read from standard input. JSON on standard output.
"""

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Literal
from unittest import mock

from masked_diffusion import checkpoints
from student_trainer import sources, train
from tests.bench.in_process_teacher import InProcessTeacher

_BYTES_PER_KIB = 1024


def memory_bytes(field: Literal["VmHWM", "VmRSS"]) -> int:
    """This process's peak (VmHWM) or present (VmRSS) resident memory.

    Not ru_maxrss: that survives exec, so it is at least what the parent held when it forked.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_KIB
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * _BYTES_PER_KIB


def main() -> None:
    """Trains as the argument says; exits with the trainer's code where it fails."""
    fields = json.loads(sys.argv[1])
    imports_bytes = memory_bytes("VmRSS")
    arguments = fields["arguments"]
    if fields["is_remote"]:
        arguments.append(f"--distill.teacher_address={sys.stdin.readline().strip()}")
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        if fields["teacher"] is not None:
            teacher = InProcessTeacher(checkpoints.load_denoiser(fields["teacher"]))
            stack.enter_context(mock.patch.object(sources, "connect_teacher", lambda *_: teacher))
        code = train.main(arguments)
    if code != 0:
        sys.exit(code)
    json.dump({"peak_rss_bytes": memory_bytes("VmHWM"), "imports_bytes": imports_bytes}, sys.stdout)


if __name__ == "__main__":
    main()
