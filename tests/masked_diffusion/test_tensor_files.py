from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masked_diffusion import checkpoints
from masked_diffusion.families.gpt2 import GPT2
from masked_diffusion.families.llada import LLaDA
from masked_diffusion.published_config import read_published_config
from masked_diffusion.tensor_files import open_tensors
from tests.fixtures import diffugpt, llada


def test_published_tensors_are_found_under_the_names_of_the_model_class(tmp_path: Path) -> None:
    llada.build(tmp_path)
    files = open_tensors(str(tmp_path), LLaDA.key_mapping)
    denoiser = checkpoints.load_denoiser(str(tmp_path))
    state = denoiser.model.state_dict()
    assert files.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        assert torch.equal(files.tensor(name), tensor), name


def test_without_a_mapping_names_stay_as_published(tmp_path: Path) -> None:
    llada.build(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    assert open_tensors(str(tmp_path), {}).shapes.keys() == published.keys()


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.safetensors; give a folder or hub id"):
        open_tensors(str(tmp_path), {})


def test_a_vocabulary_that_grew_after_the_config_is_read_from_the_embedding(
    tmp_path: Path,
) -> None:
    diffugpt.build_medium(tmp_path)
    family, config = read_published_config(str(tmp_path))
    assert family is GPT2
    assert config.vocab_size == diffugpt.MEDIUM.vocab_size > diffugpt.SMALL.vocab_size
    (tmp_path / "model.safetensors").unlink()
    assert read_published_config(str(tmp_path))[1].vocab_size == diffugpt.SMALL.vocab_size
