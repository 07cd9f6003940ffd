"""Fixtures that several test folders share: one tiny tokenizer, checkpoint and denoiser."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from tests import tiny_models, trained_models

# The same examples in every run, and no time limit for one: machines are shared.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repeatable")

# Threads cost more than they give on tiny tensors; ten times more where cores are shared.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_models.train_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved two-layer Qwen2 whose padded vocabulary is larger than the tokenizer's."""
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer) + 20)
    denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoints.save_denoiser(denoiser, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_denoiser(tiny_checkpoint: Path) -> Denoiser:
    """Shared and in evaluation mode: do not train it or change it."""
    return checkpoints.load_denoiser(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def trained_aligned() -> Denoiser:
    """Really trained, row p about token p; shared like `tiny_denoiser`."""
    return trained_models.train_denoiser("aligned")


@pytest.fixture(scope="session")
def trained_shifted() -> Denoiser:
    """Really trained, raw row p - 1 about token p; shared like `tiny_denoiser`."""
    return trained_models.train_denoiser("shifted")
