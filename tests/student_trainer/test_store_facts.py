"""What a store decides of a run's states is compared at a resume, however the run learns of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from student_trainer import precompute, train
from tests import training
from tests.servers import RunningServer, serve


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    with serve(tiny_denoiser) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(scope="module")
def stores(data, server, tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Stores of the data set: trajectories by two samplers, and the one again at another place."""
    folder = tmp_path_factory.mktemp("stores")
    questions = {
        "p2": ("--diffusion_alg=p2", "--collect_every_n_steps=2"),
        "entropy": ("--diffusion_alg=entropy", "--collect_every_n_steps=2"),
        "rare": ("--diffusion_alg=p2", "--collect_every_n_steps=3"),
    }
    for name, question in questions.items():
        arguments = (
            f"--teacher_address={server.address}",
            f"--tokenizer_path={tiny_checkpoint}",
            f"--data_path={data}",
            f"--output_path={folder / name}",
            "--num_sampling_steps=6",
            "--batch_size=4",
            "--max_seq_len=64",
            "--data.min_chunk_tokens=8",
        )
        assert precompute.main([*arguments, *question]) == 0
    shutil.copytree(folder / "p2", folder / "moved")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def command(data, server, tiny_checkpoint, tmp_path):
    """The command line of a run that goes on from its last checkpoint, live or from a store."""

    def build(store: Path | None, **more: object) -> list[str]:
        source: dict[str, object] = (
            {"distill.teacher_address": server.address}
            if store is None
            else {"distill.use_stored_logits": True, "distill.stored_logits_path": store}
        )
        settings: dict[str, object] = {
            "model.config_overrides": {"num_hidden_layers": 1},
            "distill.teacher_model_path": tiny_checkpoint,
            "train.save_steps": 1,
            "train.load_checkpoint_path": "auto",
            "train.use_tensorboard": False,
            "train.save_hf_weights": False,
        }
        return training.arguments(tmp_path / "run", data, settings | source | more)

    return build


def refusal(capsys, command: list[str]) -> str:
    capsys.readouterr()
    assert train.main([*command, "--train.max_steps=2"]) == train.EXIT_FAILED
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill")]
    return line


def test_a_live_run_does_not_go_on_from_the_store_of_a_data_set(command, stores, capsys):
    assert train.main([*command(None), "--train.max_steps=1"]) == 0
    line = refusal(capsys, command(stores["p2"]))
    assert "state_plan was run and is dataset now" in line
    assert "distill.state_source was noised and is trajectory now" in line


def test_another_store_is_another_run_unless_it_holds_the_same_states(command, stores, capsys):
    assert train.main([*command(stores["p2"]), "--train.max_steps=1"]) == 0
    line = refusal(capsys, command(stores["entropy"]))
    assert "store.sampler.algorithm was p2 and is entropy now" in line
    line = refusal(capsys, command(stores["rare"]))
    assert "store.plan.collect_every_n_steps was 2 and is 3 now" in line
    drawn = {"distill.states_per_trajectory": 1}
    line = refusal(capsys, command(stores["p2"], **drawn))
    assert "distill.states_per_trajectory was 2 and is 1 now" in line
    # Where the store is, and settings that it overrides, decide nothing.
    more = {"distill.diffusion_sampling_alg": "entropy"}
    assert train.main([*command(stores["moved"], **more), "--train.max_steps=2"]) == 0
