"""SIGTERM as a request, for as long as somebody looks at it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from student_trainer import train
from student_trainer.interrupt import StopRequest
from tests import training

_POLL_S = 0.0005


def test_the_signal_is_a_request_within_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert not request.is_set
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_set
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_gets_no_signals_leaves_them_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopRequest() as request:
            found.append((request.is_set, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]


@contextlib.contextmanager
def signals_while(begun: Callable[[], bool], done: Callable[[], bool]) -> Iterator[list[int]]:
    """Sends SIGTERM again and again from `begun` until `done`; those that were no request."""
    late: list[int] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(_POLL_S):
            if done():
                return
            if begun():
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, _: late.append(number))
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield late
    finally:
        ended.set()
        thread.join()
        # Python runs the handler of the last one before the next statement.
        time.sleep(0)
        signal.signal(signal.SIGTERM, before)


def settings(tiny_checkpoint: Path) -> dict[str, object]:
    return {
        "distill.distillation_alpha": 0.0,
        "distill.teacher_model_path": tiny_checkpoint,
        "train.use_tensorboard": False,
    }


def test_further_signals_do_not_end_a_run_that_is_still_saving(tiny_checkpoint, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    command = training.arguments(
        tmp_path / "run",
        training.write_texts(tmp_path),
        settings(tiny_checkpoint) | {"train.max_steps": 400},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    with signals_while(
        lambda: metrics.exists() and metrics.stat().st_size > 0,
        lambda: any(folder.glob("step-*")),
    ) as late:
        assert train.main(command) == 0
    assert late == []
    (saved,) = folder.iterdir()
    assert saved.name.startswith("step-")
    assert not (tmp_path / "run" / "hf_ckpt").exists()


def test_a_signal_after_the_last_step_does_not_cost_the_export(tiny_checkpoint, tmp_path):
    command = training.arguments(
        tmp_path / "run",
        training.write_texts(tmp_path),
        settings(tiny_checkpoint) | {"train.max_steps": 2, "train.save_steps": 2},
    )
    saved, exported = tmp_path / "run" / "checkpoints" / "step-2", tmp_path / "run" / "hf_ckpt"
    with signals_while(saved.exists, (exported / "model.safetensors").exists) as late:
        assert train.main(command) == 0
    assert late == []
    assert (exported / "model.safetensors").exists()
