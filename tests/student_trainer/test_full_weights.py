"""Weights as they are exported: each once. On shards: tests/integration/test_sharded_updates.py."""

import torch

from masked_diffusion import checkpoints
from student_trainer.full_weights import full_weights
from tests import tiny_models


def test_tied_weights_are_there_once_and_all_others_as_they_are(tiny_tokenizer):
    for tied in (True, False):
        config = tiny_models.qwen2_config(
            vocab_size=len(tiny_tokenizer), num_layers=1, tie_word_embeddings=tied
        )
        denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)
        state = denoiser.model.state_dict()
        found = full_weights(denoiser)
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
        pointers = [tensor.data_ptr() for tensor in found.values()]
        assert len(set(pointers)) == len(pointers)
        assert len(found) == len(state) - (1 if tied else 0)
        assert not any(tensor.requires_grad for tensor in found.values())
        # Ranks that write nothing hold nothing.
        assert full_weights(denoiser, is_kept=False) == {}
