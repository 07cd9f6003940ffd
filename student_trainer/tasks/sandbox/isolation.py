"""How a program is kept apart from the rest of the machine, and how well."""

from collections.abc import Mapping
from typing import Literal

Isolation = Literal["namespaces", "limits"]

ISOLATIONS: Mapping[Isolation, str] = {
    "namespaces": (
        "its own user, mount, process, network and IPC namespaces: no network, sees no other "
        "process and no file but the system's and the interpreter's, read-only, and writes to a "
        "bounded file system in memory; with the limits below"
    ),
    "limits": (
        "limits on time, memory, file size and processes, a cleared environment and an empty "
        "working folder, the user nobody where this process is root; but it reaches the network, "
        "reads every file that this user can, and writes and kills what its own user can"
    ),
}
"""What each of them gives."""


class SandboxError(RuntimeError):
    """The sandbox itself could not be set up, or broke; says nothing about a program."""
