"""A tiny denoiser that was really trained, in seconds: it knows a little of Python source."""

import argparse
import inspect

import torch
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import Alignment
from tests import tiny_models

NUM_STEPS = 300
BATCH_SIZE = 32
LENGTH = 48


def train_denoiser(alignment: Alignment, *, num_steps: int = NUM_STEPS) -> Denoiser:
    """Trains on the source of argparse with a mask at every fourth position or so."""
    text = inspect.getsource(argparse)
    tokenizer = tiny_models.train_tokenizer([text], vocab_size=400)
    config = tiny_models.qwen2_config(
        vocab_size=len(tokenizer), hidden_size=64, initializer_range=0.05
    )
    config.logit_alignment = alignment
    denoiser = checkpoints.new_denoiser(config, tokenizer, seed=0)
    _train(denoiser, tokenizer, text, num_steps)
    return denoiser.eval()


def _train(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast, text: str, num_steps: int
) -> None:
    corpus_N = torch.tensor(tokenizer(text)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3, weight_decay=0.0)
    mask_id = denoiser.info.mask_token_id
    for _ in range(num_steps):
        starts_B1 = torch.randint(len(corpus_N) - LENGTH, (BATCH_SIZE, 1), generator=generator)
        x0_BL = corpus_N[starts_B1 + torch.arange(LENGTH)]
        masked_BL = torch.rand(x0_BL.shape, generator=generator) < 0.25
        masked_BL[:, 0] = False
        hidden_BLD = denoiser(x0_BL.masked_fill(masked_BL, mask_id))
        logits_MV = denoiser.logits(hidden_BLD[masked_BL])
        loss = torch.nn.functional.cross_entropy(logits_MV, x0_BL[masked_BL])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
