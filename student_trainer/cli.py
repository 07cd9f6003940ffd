"""`distill`: the commands of the trainer's side.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence

from protos import errors
from student_trainer import demo, precompute, train
from student_trainer.client import TeacherClient
from student_trainer.evaluation import command as evaluation_command
from student_trainer.replicas import RetryPolicy
from student_trainer.store import command as store_command

_USAGE = """usage: distill COMMAND ...

  train CONFIG.yaml --section.field=value ...   one training run in this process;
                                                for several ranks: torchrun -m student_trainer.train
  precompute --teacher_model_path ... --data_path ... --output_path ...
                                                store a teacher's targets once, to train from
  store verify|stats|merge STORE ...            look at stores and join them
  demo [--work-dir DIR] [--quick]               the whole job on this machine, with a report
  evaluate --model PATH_OR_ID ... --data_path ... --tasks ... --output_dir ...
                                                models on held-out text, samples and tasks
  describe HOST:PORT                            what a teacher-server offers

`distill COMMAND --help` tells more."""

EXIT_FAILED = 1
EXIT_MISUSED = 2


def describe(arguments: Sequence[str]) -> int:
    """Prints what a teacher offers."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        is_help = bool({"-h", "--help"} & set(arguments))
        print("usage: distill describe HOST:PORT", file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else EXIT_MISUSED
    try:
        with TeacherClient(arguments[0], retry=RetryPolicy(give_up_after_s=5.0)) as client:
            description = client.describe()
    except (ValueError, errors.TeacherError) as error:
        print(f"distill describe: {error}", file=sys.stderr)
        return EXIT_FAILED
    for field in dataclasses.fields(description):
        print(f"{field.name}: {getattr(description, field.name)}")
    return 0


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": train.main,
    "precompute": precompute.main,
    "store": store_command.main,
    "demo": demo.main,
    "evaluate": evaluation_command.main,
    "describe": describe,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_MISUSED
    command = _COMMANDS.get(arguments[0])
    if command is None:
        print(
            f"distill: unknown command {arguments[0]!r}; known: {', '.join(_COMMANDS)}",
            file=sys.stderr,
        )
        return EXIT_MISUSED
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
