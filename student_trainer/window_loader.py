"""Worker processes that make windows, or none; the result does not depend on their number."""

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from student_trainer.windows import Window, WindowPlan, WindowStart


def load_windows(
    plan: WindowPlan, start: WindowStart | None = None, *, num_workers: int = 0
) -> Generator[Window]:
    """Every window from `start` on, in order.

    Each worker makes every num_workers-th window, and at most one of them ahead of its reader. They
    are new processes and not forks: a fork beside a gRPC channel inherits locks that threads hold
    which it does not have, and hangs. They end when the iterator is closed or collected, or when
    this process dies.

    Raises:
        ValueError: with the message of the window that could not be made.
        ChildProcessError: a worker died, of too little memory for instance.
    """
    loader: DataLoader[Window] = DataLoader(
        _Windows(plan, start or WindowStart()),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_same,
        worker_init_fn=_start_worker,
        prefetch_factor=1 if num_workers else None,
        multiprocessing_context="spawn" if num_workers else None,
        # Or it draws from the generator that dropout uses, whenever a thread comes to start it.
        generator=torch.Generator(),
    )
    windows = iter(loader)
    while True:
        try:
            window = next(windows)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(f"a process of data.num_workers died: {error}") from error
        if window.failure:
            raise ValueError(window.failure)
        yield window


class _Windows(IterableDataset[Window]):
    """One worker's share."""

    def __init__(self, plan: WindowPlan, start: WindowStart) -> None:
        super().__init__()
        self._plan = plan
        self._start = start

    def __iter__(self) -> Iterator[Window]:
        info = get_worker_info()
        if info is None:
            return self._plan.windows(self._start)
        return self._plan.windows(self._start, worker=info.id, num_workers=info.num_workers)


def _start_worker(_: int) -> None:
    # Workers are the parallelism; a tokenizer's own threads would multiply it by the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A scheduler tells every process to stop, while the run still needs its data to save: workers
    # end with the run, which torch sees to.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _same(window: Any) -> Any:
    return window
