"""States of held-out sequences, a teacher's and a student's."""

import pytest

from masked_diffusion.checkpoints import new_denoiser
from student_trainer.evaluation.states import held_out_states
from tests.held_out import dataset_of
from tests.tiny_models import PYTHON_SOURCES, qwen2_config


@pytest.fixture(scope="module")
def states(tiny_tokenizer, tiny_denoiser):
    texts = [f"{source}value = {index}\n" for index in range(4) for source in PYTHON_SOURCES]
    return held_out_states(
        dataset_of(texts, tiny_tokenizer),
        denoiser_info=tiny_denoiser.info,
        num_sequences=20,
        seed=7,
        masks_per_sequence=2,
    )


@pytest.fixture(scope="module")
def student(tiny_tokenizer, tiny_denoiser):
    config = qwen2_config(vocab_size=tiny_denoiser.info.padded_vocab_size, hidden_size=16)
    return new_denoiser(config, tiny_tokenizer, seed=5).eval()
