"""From the command line of a precompute to a student that was trained from its store."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families.mdlm_config import MdlmConfig
from protos import codec
from student_trainer import precompute, train
from student_trainer.store import StoreReader, StoreWriter
from student_trainer.store.merge import merge
from student_trainer.store.records import Unit
from student_trainer.store.verify import verify
from tests import training
from tests.fixtures import block_diffusion
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


@pytest.mark.parametrize("is_file", [True, False])
def test_a_student_without_a_tokenizer_has_the_teachers_and_its_overrides(
    *, data, settings, tmp_path, tiny_checkpoint, is_file
):
    folder = tmp_path / "student"
    folder.mkdir()
    path = folder / "config.json"
    values = json.loads((tiny_checkpoint / "config.json").read_text())
    # With the config alone the run would be refused: its mask is not the teacher's.
    mask_token_id = values.pop("mask_token_id")
    path.write_text(json.dumps(values | {"mask_token_id": mask_token_id - 1}))
    settings = settings | {"model.config_path": path if is_file else folder, "train.max_steps": 1}
    settings |= {"model.config_overrides": {"num_hidden_layers": 1, "mask_token_id": mask_token_id}}
    store = tmp_path / "store"
    live = curve(tmp_path / "live", data, settings)
    assert precompute_run(store, tmp_path, data, settings) == 0
    assert curve(tmp_path / "stored", data, settings | stored(store)) == live


@pytest.mark.parametrize("encoding", ["hidden", "top_k", "logits"])
def test_shards_in_which_nothing_is_masked_are_trained_from(data, settings, tmp_path, encoding):
    settings = settings | {"train.t_max": 0.03, "data.max_seq_len": 32, "train.max_steps": 2}
    settings |= {"distill.encoding": encoding}
    store = tmp_path / "store"
    live = curve(tmp_path / "live", data, settings)
    assert precompute_run(store, tmp_path, data, settings, "--max_shard_mib=0.0001") == 0
    with StoreReader(store) as reader:
        assert 0 in [entry.num_positions for entry in reader.entries]
    assert curve(tmp_path / "stored", data, settings | stored(store)) == live


@pytest.fixture(params=["block_causal", "uniform"])
def other_teacher(request, tiny_tokenizer, tmp_path) -> Path:
    """Teachers that must be told more than a state: clean earlier blocks; times and positions."""
    folder = tmp_path / "teacher"
    if request.param == "block_causal":
        block_diffusion.FIXTURES[0].build(folder)
        return folder
    config = MdlmConfig(
        vocab_size=len(tiny_tokenizer),
        mask_token_id=tiny_tokenizer.mask_token_id,
        noise="uniform",
        time_conditioning=True,
        model_length=64,
        hidden_dim=32,
        cond_dim=16,
        n_blocks=2,
        n_heads=2,
    )
    denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # A new one begins with zeros and says the same of every state.
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.2, generator=generator)
    checkpoints.save_denoiser(denoiser, folder)
    return folder


def test_what_a_teacher_is_told_beside_a_state_is_kept_apart_in_the_store(
    data, other_teacher, tmp_path
):
    settings: dict[str, object] = {
        "model.config_path": other_teacher,
        "distill.teacher_model_path": other_teacher,
        "data.max_seq_len": 24,
        "train.loss_weighting": "none",
        "train.max_steps": 2,
    }
    denoiser = checkpoints.load_denoiser(str(other_teacher))
    store, whole = tmp_path / "store", tmp_path / "whole"
    with serve(denoiser, deterministic=True, max_padding_fraction=0.9) as running:
        settings["distill.teacher_address"] = running.address
        live = curve(tmp_path / "live", data, settings)
        assert precompute_run(store, tmp_path, data, settings) == 0
        more = ("--state_source=noised", "--max_seq_len=24", "--data.min_chunk_tokens=8")
        address = f"--teacher_address={running.address}"
        assert precompute_data(whole, data, other_teacher, address, *more) == 0
    assert curve(tmp_path / "stored", data, settings | stored(store)) == live
    found = curve(tmp_path / "drawn", data, settings | stored(whole))
    assert all(kd > 0 for _, _, kd, _ in found)


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


def test_trajectories_of_another_sampler_are_refused_by_the_setting_that_differs(
    data, settings, tmp_path, capsys
):
    settings = settings | TRAJECTORY | {"train.max_steps": 1}
    store = tmp_path / "store"
    assert precompute_run(store, tmp_path, data, settings) == 0
    capsys.readouterr()
    for setting, value, mend in (
        ("distill.diffusion_sampling_alg", "maskgit_plus", "p2"),
        ("distill.num_sampling_steps", 14, "12"),
        ("distill.diffusion_temperature", 1.5, "0.7"),
        ("distill.diffusion_top_k", 3, "200"),
        ("distill.diffusion_suppress_mask_token", False, "True"),
        ("distill.diffusion_guidance_scale", 1.0, "0.0"),
    ):
        other = settings | stored(store) | {setting: value}
        assert train.main(training.arguments(tmp_path / "out", data, other)) == 1
        assert f"set --{setting}={mend}" in capsys.readouterr().err


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


def damaged(store: Path, *, cut: bool) -> str:
    """Flips a bit of a record's values, or cuts the file; the name of the shard."""
    path = sorted(store.glob("shard-*"))[1]
    content = bytearray(path.read_bytes())
    # The widest columns come first and hidden states are in float32: well inside them.
    content[len(content) // 2] ^= 1
    path.write_bytes(content[:-100] if cut else content)
    return path.name


@pytest.mark.parametrize("cut", [False, True])
def test_damage_ends_a_run_by_name_and_is_skipped_only_if_the_user_says_so(
    *, data, settings, tmp_path, tiny_checkpoint, server, capsys, caplog, cut
):
    store = tmp_path / "store"
    address = f"--teacher_address={server.address}"
    more = (address, "--max_examples=8", "--max_shard_mib=0.02")
    assert precompute_data(store, data, tiny_checkpoint, *more) == 0
    name = damaged(store, cut=cut)
    settings = settings | stored(store) | {"train.max_steps": 2}
    assert train.main(training.arguments(tmp_path / "refused", data, settings)) == 1
    assert f"shard {name} is corrupt" in capsys.readouterr().err
    settings |= {"distill.stored_logits_skip_corrupt": True}
    assert all(kd > 0 for _, _, kd, _ in curve(tmp_path / "skipped", data, settings))
    assert any(name in record.message for record in caplog.records if "skipped" in record.message)


def test_a_store_may_lie_at_any_url(data, settings, tmp_path, tiny_checkpoint, server):
    store = "memory://a_store_of_targets"
    address = f"--teacher_address={server.address}"
    noised = ("--state_source=noised", address)
    assert precompute_data(store, data, tiny_checkpoint, *noised, "--shard=0/2") == 0
    assert precompute_data(store, data, tiny_checkpoint, *noised, "--shard=1/2") == 0
    assert merge(store).finished
    assert verify(store) == []
    assert all(kd > 0 for _, _, kd, _ in curve(tmp_path, data, settings | stored(store)))


def test_a_termination_keeps_what_was_computed_and_the_next_run_makes_the_rest(
    data, tmp_path, tiny_checkpoint, server, monkeypatch
):
    address = f"--teacher_address={server.address}"
    add = StoreWriter.add

    def add_and_terminate(writer: StoreWriter, unit: Unit) -> None:
        add(writer, unit)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StoreWriter, "add", add_and_terminate)
    store = tmp_path / "store"
    assert precompute_data(store, data, tiny_checkpoint, address, "--max_examples=12") == 0
    with StoreReader(store) as reader:
        assert len(reader) == 4 and not reader.finished
    monkeypatch.undo()
    assert precompute_data(store, data, tiny_checkpoint, address, "--max_examples=12") == 0
    with StoreReader(store) as reader:
        assert len(reader) == 12 and reader.finished


def test_one_worker_asks_several_servers(data, tmp_path, tiny_checkpoint, tiny_denoiser, server):
    with serve(tiny_denoiser, deterministic=True) as other:
        before = [running.engine.counters.num_forwards for running in (server, other)]
        both = f"--teacher_address={server.address},{other.address}"
        assert precompute_data(tmp_path / "both", data, tiny_checkpoint, both) == 0
        after = [running.engine.counters.num_forwards for running in (server, other)]
        assert all(new > old for new, old in zip(after, before, strict=True))
        one = f"--teacher_address={server.address}"
        assert precompute_data(tmp_path / "one", data, tiny_checkpoint, one) == 0
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


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
