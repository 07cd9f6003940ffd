import shutil
from pathlib import Path

import pytest

from masked_diffusion import checkpoints
from masked_diffusion.blueprint import read_blueprint
from masked_diffusion.families import Denoiser


def test_without_weights_all_facts_are_known(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    checkpoints.save_denoiser(tiny_denoiser, folder)
    (folder / "model.safetensors").unlink()
    blueprint = read_blueprint(str(folder))
    assert blueprint.mask_token_source == "config.mask_token_id"
    assert blueprint.alignment_source == "config"
    built = blueprint.build_on_meta()
    assert built.head_weight.is_meta
    same = tiny_denoiser.info.__dict__ | {"name": str(folder)}
    assert built.info.__dict__ == same


def test_what_is_given_wins(tiny_checkpoint: Path) -> None:
    blueprint = read_blueprint(str(tiny_checkpoint), mask_token_id=7, alignment="aligned")
    assert (blueprint.mask_token_id, blueprint.mask_token_source) == (7, "given")
    assert blueprint.alignment_source == "given"
    assert blueprint.build_on_meta().info.alignment == "aligned"


def test_a_hub_id_is_read_from_the_local_cache(
    tiny_checkpoint: Path,
    tiny_denoiser: Denoiser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache laid out as the hub's client does, and no network."""
    commit = "0" * 40
    repository = tmp_path / "models--org--teacher"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    denoiser = checkpoints.load_denoiser("org/teacher")
    assert denoiser.info.name == "org/teacher"
    assert checkpoints.weights_digest(denoiser) == checkpoints.weights_digest(tiny_denoiser)
    assert denoiser.info.tokenizer_fingerprint == tiny_denoiser.info.tokenizer_fingerprint
