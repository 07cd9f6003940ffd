"""Draws a token per position from filtered logits and measures how sure the denoiser is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.config import Confidence

MIN_PROBABILITY = 1e-10
"""Floor inside the logarithm of the entropy, as upstream."""

_RAW = ("raw_probability", "raw_negative_entropy")


@dataclass(frozen=True)
class TokenSamples:
    """One token per position."""

    token_ids_M: Tensor
    """[M] int64."""
    confidence_M: Tensor
    """[M] float32; higher is surer."""


def sample_tokens(
    logits_MV: Tensor,
    *,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    confidence: Confidence,
    uniforms_M: Tensor,
    greedy_M: Tensor | None = None,
) -> TokenSamples:
    """Samples a token per position: temperature, then top_p, then top_k, softmax, draw, confidence.

    Everything is float32 but the draw, which inverts the cumulative distribution over ids, in the
    order of the ids, in float64. The confidence belongs to the scaled and filtered distribution,
    unless its name says raw.

    Args:
        logits_MV: [M, V] float32; an id at EXCLUDED_LOGIT has probability 0 and is never drawn.
            M may be 0.
        temperature: 0 takes the most likely id (the lower of equals) and ignores uniforms_M.
        top_p: Keeps the likeliest ids, up to and including the one that crosses this mass; equal
            logits go by id. None or 1 keep all.
        top_k: Keeps what is at least the k-th largest of what top_p kept; equals of the k-th
            stay. None or 0 keep all.
        confidence: "probability" of the drawn id; "margin" between the two most likely ids;
            "negative_entropy" in nats; "raw_probability" and "raw_negative_entropy" of the logits
            as they came.
        uniforms_M: [M] in the open (0, 1), one per position.
        greedy_M: [M] bool, positions that take the most likely id at any temperature; None = none.

    Source: Open-dLLM, `sample_tokens`, with the order of equals defined.
    """
    raw_MV = logits_MV.float()
    scaled_MV = raw_MV / temperature if temperature > 0 else raw_MV
    filtered_MV = filter_logits(scaled_MV, top_p=top_p, top_k=top_k)
    p_MV = torch.softmax(filtered_MV, dim=-1)
    token_ids_M = p_MV.argmax(dim=-1)
    if temperature > 0:
        drawn_M = invert_cdf(p_MV, uniforms_M.to(p_MV.device))
        token_ids_M = drawn_M if greedy_M is None else token_ids_M.where(greedy_M, drawn_M)
    if confidence in _RAW and filtered_MV is not raw_MV:
        p_MV = torch.softmax(raw_MV, dim=-1)
    return TokenSamples(token_ids_M, _measure(confidence, p_MV, token_ids_M))


def _measure(confidence: Confidence, p_MV: Tensor, token_ids_M: Tensor) -> Tensor:
    if confidence in ("probability", "raw_probability"):
        return p_MV.gather(-1, token_ids_M[:, None])[:, 0]
    if confidence == "margin":
        first_M, second_M = p_MV.topk(2, dim=-1).values.unbind(-1)
        return first_M - second_M
    return (p_MV * p_MV.clamp_min(MIN_PROBABILITY).log()).sum(-1)


def filter_logits(logits_MV: Tensor, *, top_p: float | None, top_k: int | None) -> Tensor:
    """Lowers the logits outside the nucleus and the top k to the lowest float32.

    Works on the k largest alone where top_k is set: a full sort of a 150k vocabulary costs more
    than the rest of the draw together.

    Returns:
        [M, V] float32; the input itself where nothing is filtered.
    """
    has_top_p = top_p is not None and top_p < 1
    if not (has_top_p or top_k) or logits_MV.shape[0] == 0:
        return logits_MV
    num_ids = logits_MV.shape[-1]
    num_kept = min(top_k or num_ids, num_ids)
    largest_MK = logits_MV.topk(num_kept, dim=-1).values
    if has_top_p:
        assert top_p is not None
        keep_MV = _nucleus(logits_MV, largest_MK, top_p=top_p)
    else:
        keep_MV = logits_MV >= largest_MK[:, -1:]
    return logits_MV.masked_fill(~keep_MV, torch.finfo(torch.float32).min)


def _nucleus(logits_MV: Tensor, largest_MK: Tensor, *, top_p: float) -> Tensor:
    """Marks the nucleus, cut at the smallest of the K largest logits (its equals stay).

    An id is in the nucleus if the mass of the ids before it is at most top_p. The last value that
    is in, within the K largest, is the boundary; its equals may lie on both sides of the cut.
    """
    mass_MK = (largest_MK - logits_MV.logsumexp(-1, keepdim=True)).exp()
    before_MK = mass_MK.cumsum(-1).roll(1, dims=-1)
    before_MK[:, 0] = 0
    last_M1 = (before_MK <= top_p).sum(-1, keepdim=True) - 1
    boundary_M1 = largest_MK.gather(-1, last_M1)
    equal_MV = logits_MV == boundary_M1
    greater_mass_M1 = mass_MK.masked_fill(largest_MK <= boundary_M1, 0).sum(-1, keepdim=True)
    equals_before_MV = equal_MV.cumsum(-1) - 1
    mass_before_MV = greater_mass_M1 + equals_before_MV * mass_MK.gather(-1, last_M1)
    inside_MV = (equals_before_MV == 0) | (mass_before_MV <= top_p)
    return (logits_MV > boundary_M1) | (equal_MV & inside_MV)


def invert_cdf(p_MV: Tensor, uniforms_M: Tensor) -> Tensor:
    """Finds the first id at which the cumulative probability exceeds the uniform.

    An id of probability 0 is never returned, not even by rounding.

    Returns:
        [M] int64.
    """
    cdf_MV = p_MV.double().cumsum(-1)
    total_M = cdf_MV[:, -1]
    # u * total stays below total for every float64 u < 1, so the search ends at an id with mass.
    target_M = uniforms_M.double() * total_M
    found_M = torch.searchsorted(cdf_MV, target_M[:, None], right=True)[:, 0]
    # Only for sums that are not numbers: an id past the vocabulary would be an error far from here,
    # and on a GPU the end of the process.
    return found_M.clamp_max(p_MV.shape[-1] - 1)
