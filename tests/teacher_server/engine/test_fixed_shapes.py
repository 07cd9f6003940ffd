"""Rows keep every bit whatever else is in their forward, in every kind of body."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.qwen2 import Qwen2
from teacher_server.engine.fixed_shapes import (
    MAX_TOKENS,
    FixedShapes,
    Shape,
    is_row_independent,
    shape_of,
)
from teacher_server.engine.model_runner import ModelRunner
from tests import tiny_models


def _rows(denoiser: Denoiser, lengths: list[int], *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(denoiser.info.vocab_size, (n,), generator=generator) for n in lengths]


def test_buckets_are_powers_of_two_and_one_and_a_half_times_them_up_to_the_maximum() -> None:
    lengths = sorted({shape_of(n, max_length=200, max_tokens=512).length for n in range(1, 201)})
    assert lengths == [32, 48, 64, 96, 128, 192, 200]


def test_a_shape_holds_what_the_budget_allows_and_a_longer_row_alone() -> None:
    assert shape_of(60, max_length=1024, max_tokens=512) == Shape(8, 64, is_full=False)
    assert shape_of(64, max_length=1024, max_tokens=512) == Shape(8, 64, is_full=True)
    assert shape_of(1000, max_length=1024, max_tokens=512) == Shape(1, 1024, is_full=False)
    assert shape_of(32, max_length=1024, max_tokens=1 << 20).num_rows == MAX_TOKENS // 32


def _qwen2(dtype: torch.dtype) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=300)
    return checkpoints.new_denoiser(config, None, seed=0, mask_token_id=299).eval().to(dtype)


def _bert(dtype: torch.dtype) -> Denoiser:
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return checkpoints.new_denoiser(config, None, seed=0, mask_token_id=299).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [_qwen2, _bert])
def test_a_row_keeps_every_bit_among_others_and_on_a_replica(
    make: Callable[[torch.dtype], Denoiser], dtype: torch.dtype
) -> None:
    denoiser = make(dtype)
    # Rows that fill their bucket run without a mask, the others with one.
    rows = _rows(denoiser, [20, 32, 33], seed=0)
    alone = FixedShapes(denoiser, max_tokens=128)
    before = [alone.hidden_states([row], times=[0.5])[0] for row in rows]
    replica = FixedShapes(make(dtype), max_tokens=128)
    for seed in range(1, 6):
        others = _rows(denoiser, [31, 7, 32, 48, 40, 64], seed=seed)[seed - 1 :]
        after = replica.hidden_states([*others, *rows], times=[0.5] * (len(others) + 3))
        assert all(map(torch.equal, before, after[len(others) :]))


def test_the_head_keeps_every_bit_of_a_position_among_others() -> None:
    runner = ModelRunner(_qwen2(torch.float32), max_head_elements=300 * 8, max_fixed_tokens=128)
    hidden_MD = torch.randn(21, runner.denoiser.info.hidden_size)
    (alone_1V,) = runner.logits_chunks(hidden_MD[13:14])
    among_MV = torch.cat(list(runner.logits_chunks(hidden_MD)))
    assert torch.equal(alone_1V[0], among_MV[13]) and len(among_MV) == 21


class _Contagious(Qwen2):
    """Numbers of a row depend on its batch."""

    def hidden_states(self, input_ids_BL: Tensor, *others: Any, **options: Any) -> Tensor:
        hidden_BLD = super().hidden_states(input_ids_BL, *others, **options)
        return hidden_BLD + 1e-3 * input_ids_BL.float().mean()


def test_where_neighbours_matter_rows_run_one_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    plain = _qwen2(torch.float32)
    denoiser = _Contagious(plain.model, None, name="contagious", mask_token_id=299).eval()
    shape = Shape(4, 32, is_full=True)
    assert is_row_independent(plain, shape) and not is_row_independent(denoiser, shape)
    fixed = FixedShapes(denoiser, max_tokens=128)
    rows = _rows(denoiser, [32, 32, 32], seed=0)
    together = fixed.hidden_states(rows, times=[0.5] * 3)
    alone = [fixed.hidden_states([row], times=[0.5])[0] for row in rows]
    assert all(map(torch.equal, together, alone))
    assert "row_dependent" in caplog.text
