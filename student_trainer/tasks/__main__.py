"""`python -m student_trainer.tasks MODEL --tasks NAME,...`: puts tasks to a checkpoint.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from student_trainer.tasks import command
from student_trainer.tasks.loading import load_model
from student_trainer.tasks.model_args import read_model_args
from student_trainer.tasks.run import run_tasks
from student_trainer.tasks.sandbox.isolation import ISOLATIONS, SandboxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m student_trainer.tasks",
        description="Puts benchmark tasks to a masked-diffusion language model.",
    )
    parser.add_argument("model", help="path of a folder, or hub id")
    parser.add_argument(
        "--model_args",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="how it is loaded, generates and scores: steps, alg, temperature, mc_num, dtype, ...",
    )
    parser.add_argument("--output_path", type=Path, help="a JSON file for everything found")
    command.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = command.tasks_options(parsed)
        model_args = command.read_pairs(parsed.model_args, name="--model_args")
        lm_options = read_model_args({"pretrained": parsed.model, **model_args})
        if not parsed.tasks:
            raise ValueError("--tasks must name at least one task")
    except ValueError as error:
        parser.error(str(error))
    try:
        denoiser = load_model(lm_options.model)
        result = run_tasks(denoiser, parsed.tasks, lm_options=lm_options, options=options)
    except (ValueError, SandboxError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(command.table(result.scores))
    for code in result.code_tasks:
        print(f"{code.task}: programs ran in {code.isolation}: {ISOLATIONS[code.isolation]}")
        print(f"{code.task}: {dict(code.verdicts)}, distinct answers {code.distinct_fraction:.0%}")
    if parsed.output_path is not None:
        parsed.output_path.parent.mkdir(parents=True, exist_ok=True)
        found = {**result.as_dict(), "options": lm_options, "tasks": options}
        text = json.dumps(found, default=command.plain, indent=2)
        parsed.output_path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
