"""Test programs that run on several ranks."""

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def run(
    module: str, *arguments: str, num_ranks: int, timeout_s: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Runs a module under torchrun on this machine and waits for its end."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(num_ranks), "-m", module, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=_ROOT,
    )


def train_all(commands: list[list[str]], *, num_ranks: int) -> None:
    """Trains as each command line says, one after another in one group of ranks."""
    finished = run("tests.integration.train_on_ranks", json.dumps(commands), num_ranks=num_ranks)
    assert finished.returncode == 0, finished.stderr
