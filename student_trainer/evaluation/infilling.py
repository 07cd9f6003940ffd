"""Spans of held-out text that are masked and written again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.samplers import SamplerConfig
from student_trainer.batches import SequenceBatch, collate
from student_trainer.data import TokenizedDataset
from student_trainer.evaluation.intervals import ratio_ci95_half_width, wilson_interval
from student_trainer.evaluation.sampling_plan import write
from student_trainer.evaluation.states import draw_rows, maskable_in


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Held-out sequences with one span of one length each; N of them."""

    batch: SequenceBatch
    span_BL: Tensor
    """[N, L] bool: `length` neighbouring positions a row."""
    length: int


@dataclass(frozen=True, kw_only=True)
class InfillingResult:
    """How often the original came back."""

    span_length: int
    num_spans: int
    num_exact: int
    exact_match: float
    """Share of spans of which every token is the original's."""
    exact_match_low: float
    exact_match_high: float
    """95 % interval (Wilson)."""
    token_accuracy: float
    token_accuracy_ci95: float
    num_forwards: float
    """Of a span, mean."""
    seconds: float


def draw_spans(
    dataset: TokenizedDataset, *, info: DenoiserInfo, length: int, num_spans: int, seed: int
) -> Spans:
    """Draws sequences and in each a span of positions that may all be masked, from the seed alone.

    Raises:
        ValueError: too few sequences have one.
    """
    pad_token_id = 0 if info.pad_token_id is None else info.pad_token_id

    def starts_of(row: int) -> Tensor:
        maskable_L = maskable_in(collate(dataset, [row], pad_token_id=pad_token_id), info)[0]
        if len(maskable_L) < length:
            return torch.empty(0, dtype=torch.int64)
        return maskable_L.unfold(0, length, 1).all(dim=1).nonzero()[:, 0]

    rows = draw_rows(
        dataset,
        is_eligible=lambda row: bool(len(starts_of(row))),
        num_sequences=num_spans,
        seed=seed,
        mend=f"each takes a span of {length} tokens: lower --num_infills or --infilling_spans, or "
        "give more text",
    )
    batch = collate(dataset, rows, pad_token_id=pad_token_id)
    span_BL = torch.zeros_like(batch.input_ids_BL, dtype=torch.bool)
    for place, row in enumerate(rows):
        starts = starts_of(row)
        (uniform,) = keyed_uniforms(
            seed=seed, sequence_id=place, step=length, length=1, stream="order"
        )
        start = int(starts[int(uniform * len(starts))])
        span_BL[place, start : start + length] = True
    return Spans(batch=batch, span_BL=span_BL, length=length)


def infill_spans(
    denoiser: Denoiser, spans: Spans, *, config: SamplerConfig, seed: int, batch_size: int
) -> InfillingResult:
    """Masks the spans, samples them again and compares with the original.

    Raises:
        ValueError: the denoiser cannot honour the config.
    """
    x0_BL = spans.batch.input_ids_BL
    written = write(
        denoiser,
        x0_BL.masked_fill(spans.span_BL, denoiser.info.mask_token_id),
        frozen_BL=~spans.span_BL,
        lengths_B=spans.batch.lengths_B,
        config=config,
        seed=seed,
        batch_size=batch_size,
    )
    right_B = ((written.x_BL == x0_BL) & spans.span_BL).sum(dim=1)
    num_exact = int((right_B == spans.length).sum())
    low, high = wilson_interval(num_exact, len(x0_BL))
    return InfillingResult(
        span_length=spans.length,
        num_spans=len(x0_BL),
        num_exact=num_exact,
        exact_match=num_exact / len(x0_BL),
        exact_match_low=low,
        exact_match_high=high,
        token_accuracy=float(right_B.sum()) / (len(x0_BL) * spans.length),
        token_accuracy_ci95=ratio_ci95_half_width(
            right_B.numpy(), torch.full((len(x0_BL),), spans.length).numpy()
        ),
        num_forwards=written.num_forwards,
        seconds=written.seconds,
    )
