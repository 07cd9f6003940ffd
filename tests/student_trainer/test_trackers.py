"""Where metrics go beside the file: TensorBoard's events, and what is missing is named."""

import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from student_trainer.config import TrainConfig
from student_trainer.trackers import TensorBoard, new_trackers


def config(folder: Path, **fields) -> TrainConfig:
    return TrainConfig(output_dir=str(folder), **fields)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_every_number_but_the_step_is_an_event(tmp_path):
    (tracker,) = new_trackers(config(tmp_path), {}, first_step=0)
    for step in (1, 2):
        tracker.add(step, {"step": float(step), "loss": 0.5 * step, "ce_t0.25": 2.0})
    tracker.close()
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "train/loss") == [(1, 0.5), (2, 1.0)]
    assert scalars(folder, "train/ce_t0.25") == [(1, 2.0), (2, 2.0)]
    with pytest.raises(KeyError):
        scalars(folder, "train/step")


def test_what_a_broken_run_wrote_after_its_checkpoint_is_hidden(tmp_path):
    for first_step, last_step in ((0, 4), (2, 3)):
        tracker = TensorBoard(tmp_path, first_step=first_step)
        for step in range(first_step + 1, last_step + 1):
            tracker.add(step, {"loss": float(10 * first_step + step)})
        tracker.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 23.0)]


def test_without_trackers_nothing_is_written(tmp_path):
    assert new_trackers(config(tmp_path, use_tensorboard=False), {}, first_step=0) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "module", "fields"),
    [
        ("tensorboard", "torch.utils.tensorboard", {}),
        ("wandb", "wandb", {"use_tensorboard": False, "use_wandb": True}),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_mend(
    tmp_path, monkeypatch, library, module, fields
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"train.use_{library} needs {library}; pip install {library}, or set f"
    ):
        new_trackers(config(tmp_path, **fields), {}, first_step=0)


def test_a_run_that_goes_on_is_the_same_run_at_wandb(tmp_path, monkeypatch):
    begun = []
    library = types.ModuleType("wandb")
    library.init = lambda **options: begun.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", library)
    fields = {"use_tensorboard": False, "use_wandb": True}
    for first_step in (0, 4, 7, 0):
        new_trackers(config(tmp_path, **fields), {}, first_step=first_step)
    ids = [options["id"] for options in begun]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert {options["resume"] for options in begun} == {"allow"}
