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
from teacher_server.engine.fixed_head import FixedHead
from teacher_server.engine.fixed_shapes import FixedShapes, Shape, random_rows, shape_of
from teacher_server.engine.model_runner import ModelRunner
from tests import tiny_models


def _rows(denoiser: Denoiser, lengths: list[int], *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(denoiser.info.vocab_size, (n,), generator=generator) for n in lengths]


def test_buckets_are_a_quarter_of_a_power_of_two_apart_up_to_the_maximum() -> None:
    lengths = sorted({shape_of(n, max_length=150).length for n in range(1, 151)})
    assert lengths == [32, 40, 48, 56, 64, 80, 96, 112, 128, 150]
    assert shape_of(60, max_length=1024) == Shape(64, is_full=False)
    assert shape_of(64, max_length=1024) == Shape(64, is_full=True)


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
    # It is not tested and runs rows one at a time: a replica that ran out of time agrees.
    alone = FixedShapes(denoiser, max_tokens=128)
    before = alone.hidden_states(rows, times=[0.5] * 3)
    replica = FixedShapes(make(dtype), max_tokens=128)
    replica.prove(seconds=60.0)
    # 128 tokens are two rows of 64 or 3, hence 2, of 40.
    at_once = [replica.num_at_once(Shape(length, is_full=True), 9) for length in (32, 40, 64, 80)]
    assert at_once == [4, 2, 2, 1]
    for seed in range(1, 6):
        others = _rows(denoiser, [31, 7, 32, 48, 40, 64], seed=seed)[seed - 1 :]
        after = replica.hidden_states([*others, *rows], times=[0.5] * (len(others) + 3))
        assert all(map(torch.equal, before, after[len(others) :]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_keeps_every_bit_of_a_position_among_others(dtype: torch.dtype) -> None:
    runner = ModelRunner(_qwen2(dtype), max_head_elements=300 * 40, max_fixed_tokens=128)
    hidden_MD = torch.randn(61, runner.denoiser.info.hidden_size, dtype=dtype)
    alone = [torch.cat(list(runner.logits_chunks(hidden_D[None]))) for hidden_D in hidden_MD]
    runner.prove_shapes()
    chunks = list(runner.logits_chunks(hidden_MD))
    assert [len(chunk) for chunk in chunks] == [32, 16, 8, 5]
    assert torch.equal(torch.cat(alone), torch.cat(chunks))


class _Contagious(Qwen2):
    """Numbers of a row depend on its batch."""

    def hidden_states(self, input_ids_BL: Tensor, *others: Any, **options: Any) -> Tensor:
        hidden_BLD = super().hidden_states(input_ids_BL, *others, **options)
        return hidden_BLD + 1e-3 * input_ids_BL.float().mean()

    def logits(self, hidden: Tensor, *, suppress_mask_token: bool = True) -> Tensor:
        return super().logits(hidden + hidden[0], suppress_mask_token=suppress_mask_token)


def test_where_neighbours_matter_rows_and_positions_run_one_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = _qwen2(torch.float32)
    denoiser = _Contagious(plain.model, None, name="contagious", mask_token_id=299).eval()
    fixed = FixedShapes(denoiser, max_tokens=128)
    fixed.prove(seconds=60.0)
    rows = [row for row, _ in random_rows(denoiser, Shape(32, is_full=True), 3, seed=0)]
    together = fixed.hidden_states(rows, times=[0.5] * 3)
    alone = [fixed.hidden_states([row], times=[0.5])[0] for row in rows]
    assert all(map(torch.equal, together, alone))
    assert "row_dependent" in caplog.text
    head = FixedHead(denoiser)
    head.prove(max_positions=64)
    hidden_MD = torch.randn(5, denoiser.info.hidden_size)
    assert len(list(head.logits_chunks(hidden_MD, suppress_mask_token=True))) == 5
    assert "position_dependent" in caplog.text


def test_shapes_that_time_did_not_allow_to_test_run_one_row_at_a_time() -> None:
    fixed = FixedShapes(_qwen2(torch.float32), max_tokens=128)
    fixed.prove(seconds=-1.0)
    assert fixed.num_at_once(Shape(32, is_full=True), 9) == 1
