"""What a sandboxed program may use."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxLimits:
    """Bounds of one program; reaching one fails that program and nothing else."""

    wall_s: float = 10.0
    """Seconds on the clock; then everything the program started is killed."""
    cpu_s: int = 10
    """Seconds of processor time of each process."""
    memory_bytes: int = 2**30
    """Address space of each process."""
    file_bytes: int = 2**24
    """Size of each file that is written."""
    scratch_bytes: int = 2**26
    """Size of all files together; held with namespaces only."""
    num_processes: int = 16
    """Processes and threads at a time. Without namespaces every process of the same user counts."""
    num_open_files: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be positive and finite, got {value}")
