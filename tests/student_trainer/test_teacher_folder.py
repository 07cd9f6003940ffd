"""A teacher's weights with a configuration from elsewhere."""

import json
import shutil

import pytest

from masked_diffusion import checkpoints
from student_trainer.teacher_folder import link_with_config


def test_weights_are_opened_with_the_other_configuration(tiny_checkpoint, tmp_path):
    bare, config = tmp_path / "bare", tmp_path / "config"
    shutil.copytree(tiny_checkpoint, bare, ignore=shutil.ignore_patterns("config.json"))
    config.mkdir()
    values = json.loads((tiny_checkpoint / "config.json").read_text())
    (config / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 99}))

    folder = link_with_config(str(bare), str(config), tmp_path / "linked")

    assert checkpoints.load_denoiser(folder).info.max_length == 99


def test_the_same_path_is_left_alone(tmp_path):
    assert link_with_config("owner/name", "owner/name", tmp_path / "linked") == "owner/name"
    assert not (tmp_path / "linked").exists()


def test_paths_that_are_not_here_are_refused(tiny_checkpoint, tmp_path):
    for model, config in (("owner/name", tiny_checkpoint), (tiny_checkpoint, tmp_path / "none")):
        with pytest.raises(ValueError, match=f"teacher_config_path is '{config}'"):
            link_with_config(str(model), str(config), tmp_path / "linked")
