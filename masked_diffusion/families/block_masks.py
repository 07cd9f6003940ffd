"""Attention masks of block diffusion: float, added to the scores.

Not bool: eager attention adds whatever it gets, and True + score hides nothing.

Source: Arriola et al., arXiv:2503.09573 (BD3LM), section 3 and appendix B.6.
"""

import torch
from torch import Tensor


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Makes the mask that attention adds to its scores.

    Args:
        seen: [B, Q, K] bool, true where query q attends to key k.
        dtype: Of the scores.

    Returns:
        [B, 1, Q, K] of the dtype: 0 where seen, the dtype's lowest elsewhere. Finite, so that a
        query that sees nothing, which only padding may be, gives no NaN.
    """
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def block_causal(real_BL: Tensor, *, block_length: int) -> Tensor:
    """Finds what a position sees of its own sequence: its own block and the blocks before.

    Args:
        real_BL: [B, L] bool, false for padding.

    Returns:
        [B, L, L] bool. Padding is seen by nobody but itself.
    """
    block_L = torch.arange(real_BL.shape[1], device=real_BL.device) // block_length
    seen_LL = block_L[:, None] >= block_L[None, :]
    return (seen_LL & real_BL[:, None, :]) | _itself(real_BL.shape[1], real_BL.device)


def two_stream(real_BL: Tensor, *, block_length: int) -> Tensor:
    """Finds what the positions of [x_t ; x_0] see.

    A position of x_t sees its own block of x_t and the earlier blocks of x_0; a position of x_0
    sees its own block of x_0 and the earlier ones, so x_0 never learns of x_t.

    Args:
        real_BL: [B, L] bool, false for padding; of x_t and of x_0 alike.

    Returns:
        [B, 2 L, 2 L] bool: block-diagonal | offset block-causal above nothing | block-causal.
    """
    length = real_BL.shape[1]
    block_L = torch.arange(length, device=real_BL.device) // block_length
    same_LL = block_L[:, None] == block_L[None, :]
    after_LL = block_L[:, None] > block_L[None, :]
    noisy_rows = torch.cat([same_LL, after_LL], dim=1)
    clean_rows = torch.cat([torch.zeros_like(same_LL), same_LL | after_LL], dim=1)
    seen = torch.cat([noisy_rows, clean_rows]) & torch.cat([real_BL, real_BL], dim=1)[:, None, :]
    return seen | _itself(2 * length, real_BL.device)


def block_span(
    num_cached_B: Tensor, span_lengths_B: Tensor, *, block_length: int, cached: int, span: int
) -> Tensor:
    """Finds what a span of new positions sees: cached positions before it, and itself by blocks.

    Args:
        num_cached_B: [B] int64, positions of each row that are cached; its span begins there.
        span_lengths_B: [B] int64, new positions of each row.
        cached: Width of the padded caches.
        span: Width of the padded spans.

    Returns:
        [B, span, cached + span] bool. Padding is seen by nobody but itself.
    """
    device = num_cached_B.device
    cached_BK = torch.arange(cached, device=device) < num_cached_B[:, None]
    offsets_S = torch.arange(span, device=device)
    block_BS = (num_cached_B[:, None] + offsets_S) // block_length
    seen_BSS = block_BS[:, :, None] >= block_BS[:, None, :]
    seen_BSS = seen_BSS & (offsets_S < span_lengths_B[:, None])[:, None, :]
    seen_BSS = seen_BSS | _itself(span, device)
    return torch.cat([cached_BK[:, None, :].expand(-1, span, -1), seen_BSS], dim=2)


def _itself(length: int, device: torch.device) -> Tensor:
    return torch.eye(length, dtype=torch.bool, device=device)
