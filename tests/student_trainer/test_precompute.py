"""From the command line of a precompute to a student that was trained from its store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import codec
from student_trainer import precompute, train
from student_trainer.store import StoreReader
from student_trainer.store.merge import merge
from student_trainer.store.verify import verify
from tests import training
from tests.servers import RunningServer, serve

COMPARED = ("loss", "ce", "kd", "grad_norm")
TRAJECTORY = {
    "distill.state_source": "trajectory",
    "distill.num_sampling_steps": 12,
    "distill.collect_every_n_steps": 2,
}


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    """One row a step, so that equal requests have bit-identical answers."""
    with serve(tiny_denoiser, deterministic=True) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(server, tiny_checkpoint) -> dict[str, object]:
    return {
        "model.config_overrides": {"num_hidden_layers": 1},
        "distill.teacher_address": server.address,
        "distill.teacher_model_path": tiny_checkpoint,
        "train.global_batch_size": 8,
    }


def stored(path: object) -> dict[str, object]:
    return {
        "distill.use_stored_logits": True,
        "distill.stored_logits_path": path,
        "distill.teacher_address": None,
    }


def curve(folder: Path, data: Path, settings: dict[str, object]) -> list[list[float]]:
    metrics = training.run(training.arguments(folder, data, settings))
    return [[step[name] for name in COMPARED] for step in metrics]


def precompute_run(
    store: object, folder: Path, data: Path, settings: dict[str, object], *more: str
) -> int:
    """Stores exactly the states of the run with these settings."""
    config = folder / "run.yaml"
    config.write_text("")
    arguments = training.arguments(folder / "unused", data, settings)
    return precompute.main([f"--output_path={store}", f"--run_config={config}", *more, *arguments])


def precompute_data(store: object, data: Path, model: Path, *more: str) -> int:
    return precompute.main(
        [
            f"--teacher_model_path={model}",
            f"--data_path={data}",
            f"--output_path={store}",
            "--num_sampling_steps=12",
            "--collect_every_n_steps=2",
            "--batch_size=4",
            "--max_seq_len=64",
            *more,
        ]
    )


@pytest.mark.parametrize("more", [{}, TRAJECTORY, {"distill.encoding": "top_k"}])
def test_training_from_the_store_of_a_run_has_the_losses_of_the_live_run(
    data, settings, tmp_path, more
):
    settings = settings | more
    store = tmp_path / "store"
    live = curve(tmp_path / "live", data, settings)
    assert precompute_run(store, tmp_path, data, settings) == 0
    assert verify(store) == []
    found = curve(tmp_path / "stored", data, settings | stored(store))
    # Equal targets, so equal in every bit, although 1e-6 is what is promised.
    assert found == live


def test_live_and_stored_targets_may_change_places_at_a_resume(data, settings, tmp_path):
    store = tmp_path / "store"
    whole = curve(tmp_path / "live", data, settings)
    assert precompute_run(store, tmp_path, data, settings) == 0
    halves = {"live_first": (settings, settings | stored(store))}
    halves["store_first"] = (halves["live_first"][1], halves["live_first"][0])
    for name, (first, second) in halves.items():
        folder = tmp_path / name
        curve(folder, data, first | {"train.save_steps": 2})
        resume = {"train.load_checkpoint_path": folder / "checkpoints" / "step-2"}
        assert curve(tmp_path / f"{name}_2", data, second | resume) == whole[2:]


def test_a_store_of_another_run_is_refused_by_the_setting_that_differs(
    data, settings, tmp_path, capsys
):
    store = tmp_path / "store"
    assert precompute_run(store, tmp_path, data, settings) == 0
    capsys.readouterr()
    for setting, words in (
        ({"train.seed": 7}, "with seed = 42, this run has 7"),
        (
            {"distill.encoding": "top_k"},
            "distill.encoding is 'top_k'; set --distill.encoding=hidden",
        ),
        ({"distill.teacher_revision": "0f"}, "made with revision = "),
    ):
        command = training.arguments(tmp_path / "out", data, settings | stored(store) | setting)
        assert train.main(command) == 1
        assert words in capsys.readouterr().err
    # More steps than were stored: a missing state is an error, never cross-entropy alone.
    command = training.arguments(
        tmp_path / "out", data, settings | stored(store) | {"train.max_steps": 6}
    )
    assert train.main(command) == 1
    assert "does not hold the state of sequence" in capsys.readouterr().err


def test_a_data_set_is_stored_once_and_trained_from_for_several_epochs(
    data, settings, tmp_path, tiny_checkpoint, server
):
    store = tmp_path / "store"
    address = f"--teacher_address={server.address}"
    assert precompute_data(store, data, tiny_checkpoint, address, "--max_examples=10") == 0
    with StoreReader(store) as reader:
        assert reader.finished and len(reader) == 10
        assert reader.counts["num_records"] > 30
    settings = settings | stored(store) | {"train.num_train_epochs": 3, "train.max_steps": None}
    found = curve(tmp_path / "stored", data, settings)
    assert len(found) == 4  # ceil(3 * 10 / 8)
    assert all(kd > 0 for _, _, kd, _ in found)
    # More data later: what is there is not asked for again.
    num_forwards = server.engine.counters.num_forwards
    assert precompute_data(store, data, tiny_checkpoint, address, "--max_examples=10") == 0
    assert server.engine.counters.num_forwards == num_forwards
    assert precompute_data(store, data, tiny_checkpoint, address, "--max_examples=12") == 0
    with StoreReader(store) as reader:
        assert len(reader) == 12


def test_workers_share_a_folder_or_are_merged(data, tmp_path, tiny_checkpoint, server):
    address = f"--teacher_address={server.address}"
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    noised = ("--state_source=noised", "--num_passes=2", address)
    assert precompute_data(whole, data, tiny_checkpoint, *noised) == 0
    for number in range(3):
        share = f"--shard={number}/3"
        assert precompute_data(shared, data, tiny_checkpoint, *noised, share) == 0
        with StoreReader(shared) as reader:
            assert reader.finished == (number == 2)
        lone = tmp_path / f"lone{number}"
        assert precompute_data(lone, data, tiny_checkpoint, *noised, share) == 0
    merged = tmp_path / "merged"
    assert merge(merged, [tmp_path / f"lone{number}" for number in range(3)]).finished
    assert merge(shared).finished
    assert contents(whole) == contents(shared) == contents(merged)


def contents(store: Path) -> dict[bytes, object]:
    with StoreReader(store) as reader:
        units = [place.read() for place in reader.places()]
    return {
        unit.key: (
            unit.example_key,
            [(r.t, r.num_maskable, codec.encode_targets(r.targets)) for r in unit.records],
        )
        for unit in units
    }
