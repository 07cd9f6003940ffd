"""Giving up everything that a program has no need of: rights, files, environment, resources."""

import os
import resource
import sys

from student_trainer.tasks.sandbox import system_calls
from student_trainer.tasks.sandbox.limits import SandboxLimits

NOBODY = 65534
"""User and group that root becomes: root itself is exempt from the limit on processes."""


def becomes_nobody() -> bool:
    """Tells whether this process is root and may become nobody: some containers know only root."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def drop_rights(*, as_nobody: bool, reads_all_files: bool) -> None:
    """Becomes an ordinary user without capabilities, and dies with the parent from now on.

    Args:
        as_nobody: See `becomes_nobody`.
        reads_all_files: Let nobody, whom root becomes, still read what root can: the interpreter
            may lie in root's own folder.

    Raises:
        OSError: a right could not be given up, or that user cannot read the interpreter.
    """
    kept: tuple[int, ...] = ()
    system_calls.give_up_new_privileges()
    system_calls.bound_capabilities()
    if as_nobody:
        if reads_all_files:
            kept = (system_calls.CAP_DAC_READ_SEARCH,)
            system_calls.keep_capabilities_as_another_user()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    system_calls.keep_capabilities(kept)
    system_calls.die_with_parent()
    # Otherwise every program would fail at its first import, which would look like its own fault.
    os.listdir(os.path.dirname(os.__file__))


def limit_resources(limits: SandboxLimits) -> None:
    """Sets the kernel's limits on this process and all it starts."""
    values = {
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NPROC: limits.num_processes,
        resource.RLIMIT_NOFILE: limits.num_open_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in values.items():
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def keep_only(descriptor: int) -> None:
    """Closes every open file but one; standard input, output and errors lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    sys.argv = [""]
