"""Run by torchrun: whole training runs one after another, in one group of ranks.

`torchrun ... -m tests.integration.train_on_ranks JSON`, a list of command lines: starting a process
takes longer than a small run. A module of its own, since ranks are processes.
"""

import json
import sys

from student_trainer import config_file, train
from student_trainer.parallel import start_parallel


def main() -> None:
    """Trains as each command line says."""
    with start_parallel() as parallel:
        for command in json.loads(sys.argv[1]):
            train.run(config_file.load_config(command), parallel)


if __name__ == "__main__":
    main()
