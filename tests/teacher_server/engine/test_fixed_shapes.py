"""Rows keep every bit whatever else is in their forward, in every kind of body."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
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
