"""Writes checkpoints beside the training: copied at once, written on a thread, whole or not there.

A thread and not a process: it shares the copy, and torch's process-based writer hangs in a program
without a main guard. Its ranks agree over a group of their own, since the training's collectives
go on meanwhile.
"""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from student_trainer.checkpoint import (
    CONFIG_FILE,
    FACTS_FILE,
    REPLACED,
    one_process_allowed,
    put_back_replaced,
    whole_checkpoints,
)
from student_trainer.parallel import Parallel
from student_trainer.run_facts import Facts


class CheckpointWriter:
    """Saves `folder/step-N`; the main rank publishes it once every rank's share is on disk."""

    def __init__(
        self,
        folder: Path,
        parallel: Parallel,
        *,
        facts: Facts,
        config_text: str = "",
        keep_last: int = 0,
        is_async: bool = True,
    ) -> None:
        """Removes what an interrupted writer left; all ranks do this together.

        Args:
            folder: on a file system that all ranks share.
            facts: what a run that goes on from here must share; compared by `load_checkpoint`.
            config_text: kept beside them, to read.
            keep_last: checkpoints that stay; 0 = all.
        """
        self._folder = folder
        self._parallel = parallel
        self._facts = dict(facts)
        self._config_text = config_text
        self._keep_last = keep_last
        self._is_async = is_async
        self._group: dist.ProcessGroup | None = None
        if parallel.is_main:
            put_back_replaced(folder)
            for path in folder.glob(".step-*"):
                shutil.rmtree(path)
        if parallel.has_group:
            dist.barrier()
            self._group = dist.new_group(backend="gloo")
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=parallel.device.type == "cuda",
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.wait()
            self._pool.shutdown()
        else:
            # Other ranks may never come to write their share.
            self._pool.shutdown(wait=False, cancel_futures=True)

    def save(self, state: Mapping[str, Any], *, step: int) -> None:
        """Copies the state and begins to write it, after the one before is written.

        Raises:
            OSError: the one before could not be written, or this one where nothing is asynchronous.
        """
        self.wait()
        copied = self._stager.stage(dict(state))
        self._writing = self._pool.submit(self._write, copied, step)
        if not self._is_async:
            self.wait()

    def check(self) -> None:
        """Raises what writing raised, without waiting for its end."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written; raises what writing raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: Any, step: int) -> None:
        scratch = self._folder / f".step-{step}.partial"
        try:
            with one_process_allowed():
                dcp.save(
                    state,
                    checkpoint_id=scratch,
                    process_group=self._group,
                    no_dist=self._group is None,
                )
        except dcp.CheckpointException as error:
            # Of torch's own kind, which `except Exception` does not see.
            reason, _ = next(iter(error.failures.values()))
            raise OSError(f"cannot write the checkpoint {scratch}: {reason}") from error
        if self._parallel.is_main:
            self._publish(scratch, step)
            self._prune()

    def _publish(self, scratch: Path, step: int) -> None:
        folder = self._folder / f"step-{step}"
        facts = self._facts | {"steps_done": step}
        batch = self._facts.get("global_batch_size")
        if isinstance(batch, int):
            # Which keys what comes next, in the data and with the teacher.
            facts["next_sample"] = step * batch
        texts = {CONFIG_FILE: self._config_text, FACTS_FILE: json.dumps(facts, indent=2)}
        for name, text in texts.items():
            if text:
                (scratch / name).write_text(text, encoding="utf-8")
                _sync(scratch / name)
        _sync(scratch)
        replaced = folder.with_name(f".{folder.name}{REPLACED}")
        if folder.exists():
            # Until the new one has its name, a start after the end of this process puts it back.
            folder.rename(replaced)
        scratch.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self) -> None:
        if self._keep_last:
            for old in whole_checkpoints(self._folder)[: -self._keep_last]:
                # In one move, so that half of it is never taken for a checkpoint.
                removed = old.with_name(f".{old.name}.removed")
                old.rename(removed)
                shutil.rmtree(removed, ignore_errors=True)


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, outlive a power cut; torch syncs what it writes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
