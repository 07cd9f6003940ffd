"""What the denoiser's distributions come to at the positions that a sampler asks about."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.base import RowBatch, Sampler
from masked_diffusion.samplers.config import SamplerConfig
from masked_diffusion.samplers.tokens import TokenSamples


@dataclass(frozen=True)
class Decisions:
    """A token and a confidence for each decided position, as `Sampler.update` takes them."""

    tokens_BL: Tensor
    """[B, L] int64; 0 where not decided."""
    confidence_BL: Tensor
    """[B, L] float32; 0 where not decided."""


def decide(
    sampler: Sampler,
    rows: RowBatch,
    config: SamplerConfig,
    *,
    decided_BL: Tensor,
    logits_chunks: Iterable[Tensor],
) -> Decisions:
    """Draws the tokens of one step, with each row's own numbers.

    Args:
        sampler: Whose step it is.
        rows: As given to `Sampler.positions_to_decide`.
        config: Likewise.
        decided_BL: What it returned, M positions in all.
        logits_chunks: [chunk, V] float32 each, of the M positions in row-major order, so that
            [M, V] is never whole.
    """
    positions = rows.decided(decided_BL)
    samples: list[TokenSamples] = []
    offset = 0
    for logits_MV in logits_chunks:
        chunk = slice(offset, offset + len(logits_MV))
        samples.append(sampler.draw(logits_MV, config=config, positions=positions[chunk]))
        offset = chunk.stop
    tokens_BL = torch.zeros_like(rows.x_BL)
    confidence_BL = torch.zeros(rows.x_BL.shape)
    if samples:
        tokens_BL[decided_BL] = torch.cat([chunk.token_ids_M.cpu() for chunk in samples])
        confidence_BL[decided_BL] = torch.cat([chunk.confidence_M.cpu() for chunk in samples])
    return Decisions(tokens_BL, confidence_BL)
