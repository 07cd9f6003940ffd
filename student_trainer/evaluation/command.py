"""`distill evaluate`: measures models on held-out text, on what they write and by tasks.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console
from transformers.utils import logging as transformers_logging

from student_trainer.config_file import ConfigError
from student_trainer.evaluation.options import parse
from student_trainer.evaluation.report import TEXT_WIDTH, write_report
from student_trainer.evaluation.run import run
from student_trainer.tasks.sandbox.isolation import SandboxError

EXIT_FAILED = 1
EXIT_MISUSED = 2
logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates as the arguments say; returns the exit code."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"distill evaluate: {error}", file=sys.stderr)
        return EXIT_MISUSED
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    transformers_logging.disable_progress_bar()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), file=sys.stderr, flush=True)
    # A file or a pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else TEXT_WIDTH)
    try:
        page = write_report(run(config), Path(config.output_dir), console=console)
    except (ValueError, OSError, SandboxError) as error:
        logger.debug("failed", exc_info=True)
        print(f"distill evaluate: {error}", file=sys.stderr)
        return EXIT_FAILED
    console.print(f"\nReport: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0
