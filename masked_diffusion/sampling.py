"""The in-process sampling loop, for evaluation: whole trajectories of a right-padded batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion import uniform_noise
from masked_diffusion.block_cache import MAX_CACHE_BYTES, BlockCaches, BlockRow
from masked_diffusion.families import Denoiser, padding_mask
from masked_diffusion.guidance import guided_hidden_states, unconditional_states
from masked_diffusion.samplers import RowBatch, SamplerConfig, check_fits, decide, get_sampler

MAX_CHUNK_ELEMENTS = 2**24
"""Logits made at a time: 64 MiB of float32, about 110 positions of a 152k vocabulary."""


@dataclass(frozen=True)
class SampleResult:
    """Finished trajectories, in the order of the input rows."""

    x: Tensor
    """[B, L] int64; no generated position is masked, unless the mask id could be drawn."""
    unmask_steps_BL: Tensor
    """[B, L] int64: the last step at which the position was unmasked; -1 where it was given or is
    masked."""
    num_forwards_B: Tensor
    """[B] int64: forwards that each row took part in, two a step with guidance; idle steps cost
    none."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x_BL: Tensor,
    *,
    frozen_BL: Tensor,
    lengths_B: Tensor,
    config: SamplerConfig,
    seeds: Sequence[int],
    sequence_ids: Sequence[int],
    max_cache_bytes: int = MAX_CACHE_BYTES,
) -> SampleResult:
    """Runs every row through all steps; rows that are finished or idle leave the forward.

    Args:
        denoiser: In evaluation mode.
        x_BL: [B, L] int64 start states, right padded; not changed. What is masked and not frozen
            is generated: a denoiser of uniform noise begins there with pure noise.
        frozen_BL: [B, L] bool, given positions. Padding is frozen besides.
        lengths_B: [B] int64.
        config: Of all rows.
        seeds: [B], of each row's request.
        sequence_ids: [B], within the request. The same (seed, id) gives the same result in any
            batch.
        max_cache_bytes: Of keys and values of finished blocks, with a block-causal denoiser.

    Raises:
        ValueError: the denoiser cannot honour the config.
    """
    info = denoiser.info
    check_fits(config, info)
    caches = None
    if info.attention == "block_causal" and not config.guidance_scale:
        caches = BlockCaches(denoiser, max_bytes=max_cache_bytes)
    x_BL, lengths_B = x_BL.cpu(), lengths_B.cpu()
    frozen_BL = frozen_BL.cpu() | (torch.arange(x_BL.shape[1]) >= lengths_B[:, None])
    if info.noise == "uniform":
        x_BL = uniform_noise.start_states(
            x_BL, frozen_BL=frozen_BL, info=info, seeds=seeds, sequence_ids=sequence_ids
        )
    unmask_steps_BL = torch.full_like(x_BL, -1)
    num_forwards_B = torch.zeros(len(x_BL), dtype=torch.int64)
    for step in range(config.num_steps):
        rows = RowBatch(
            x_BL=x_BL,
            frozen_BL=frozen_BL,
            step_B=torch.full((len(x_BL),), step),
            num_steps_B=torch.full((len(x_BL),), config.num_steps),
            seeds=list(seeds),
            sequence_ids=list(sequence_ids),
            denoiser_block_length=info.block_length,
        )
        next_BL, active_B = _advance(denoiser, rows, lengths_B, config, caches)
        unmasked_BL = (x_BL != next_BL) & (next_BL != info.mask_token_id)
        unmask_steps_BL[unmasked_BL] = step
        unmask_steps_BL[next_BL == info.mask_token_id] = -1
        num_forwards_B += active_B * config.forwards_per_step
        x_BL = next_BL
    return SampleResult(x_BL, unmask_steps_BL, num_forwards_B)


def _advance(
    denoiser: Denoiser,
    rows: RowBatch,
    lengths_B: Tensor,
    config: SamplerConfig,
    caches: BlockCaches | None,
) -> tuple[Tensor, Tensor]:
    """Takes one step: the next state, and which rows needed the denoiser for it."""
    sampler = get_sampler(config.algorithm)
    mask_token_id = denoiser.info.mask_token_id
    decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=mask_token_id)
    active_B = decided_BL.any(-1)
    if not active_B.any():
        return rows.x_BL, active_B
    if caches is None:
        hidden_MD = _hidden_at(denoiser, rows, lengths_B, config, decided_BL)
    else:
        masked_BL = rows.masked(mask_token_id=mask_token_id)
        hidden_MD = _hidden_by_blocks(caches, rows.x_BL, masked_BL, lengths_B, decided_BL)
    decisions = decide(
        sampler,
        rows,
        config,
        decided_BL=decided_BL,
        logits_chunks=logits_chunks(
            denoiser, hidden_MD, suppress_mask_token=config.suppress_mask_token
        ),
    )
    next_BL = sampler.update(
        rows,
        config,
        mask_token_id=mask_token_id,
        decided_BL=decided_BL,
        tokens_BL=decisions.tokens_BL,
        confidence_BL=decisions.confidence_BL,
    )
    return next_BL, active_B


def _hidden_at(
    denoiser: Denoiser,
    rows: RowBatch,
    lengths_B: Tensor,
    config: SamplerConfig,
    decided_BL: Tensor,
) -> Tensor:
    """Runs the denoiser on the active rows, cut to the longest: [M, D] where decided."""
    active_B = decided_BL.any(-1)
    lengths_B = lengths_B[active_B]
    longest = int(lengths_B.max())
    x_BL, decided_BL = rows.x_BL[active_B, :longest], decided_BL[active_B, :longest]
    if config.guidance_scale:
        # Padding is frozen too, but the attention mask hides whatever is in it.
        given_BL = rows.frozen_BL[active_B, :longest]
        free_BL = unconditional_states(x_BL, given_BL, mask_token_id=denoiser.info.mask_token_id)
        x_BL, lengths_B = torch.cat([x_BL, free_BL]), lengths_B.repeat(2)
    mask_BL = padding_mask(lengths_B, longest)
    # All rows are at the same step.
    time = get_sampler(config.algorithm).times(config)[rows.step_B[0]]
    hidden_BLD = denoiser(
        x_BL.to(denoiser.device),
        None if mask_BL is None else mask_BL.to(denoiser.device),
        times_B=time.expand(len(x_BL)).to(denoiser.device),
    )
    if config.guidance_scale:
        hidden_BLD = guided_hidden_states(
            *hidden_BLD.chunk(2), guidance_scale=config.guidance_scale
        )
    return hidden_BLD[decided_BL.to(denoiser.device)]


def _hidden_by_blocks(
    caches: BlockCaches, x_BL: Tensor, masked_BL: Tensor, lengths_B: Tensor, decided_BL: Tensor
) -> Tensor:
    """Runs the block at work of the active rows: [M, D] where decided."""
    rows = [
        BlockRow(
            key=index,
            ids_L=x_BL[index, :length],
            open_L=masked_BL[index, :length],
            needed_L=decided_BL[index, :length],
        )
        for index, length in enumerate(lengths_B.tolist())
        if decided_BL[index].any()
    ]
    hidden_BLD = caches.hidden_states(rows)
    decided_BL = decided_BL[decided_BL.any(-1), : hidden_BLD.shape[1]]
    return hidden_BLD[decided_BL.to(hidden_BLD.device)]


def logits_chunks(
    denoiser: Denoiser,
    hidden_MD: Tensor,
    *,
    suppress_mask_token: bool = True,
    max_chunk_elements: int = MAX_CHUNK_ELEMENTS,
) -> Iterator[Tensor]:
    """Applies the head to a chunk of positions at a time.

    Args:
        denoiser: Whose head it is.
        hidden_MD: [M, D] aligned hidden states.
        suppress_mask_token: See `Denoiser.logits`.
        max_chunk_elements: Bounds positions times vocabulary held at once.

    Yields:
        [chunk, V] float32 on the denoiser's device.
    """
    chunk_size = max(1, max_chunk_elements // denoiser.info.vocab_size)
    for chunk_MD in hidden_MD.split(chunk_size):
        yield denoiser.logits(chunk_MD, suppress_mask_token=suppress_mask_token)
