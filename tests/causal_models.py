"""Tiny causal language models of transformers, saved as a user would have them."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def save_causal_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, max_length: int = 128
) -> Path:
    """Saves a GPT-2 with random weights, wide enough that its outputs are far from uniform."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=max_length,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
