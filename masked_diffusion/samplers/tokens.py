"""Draws a token per position from filtered logits and measures how sure the denoiser is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.config import Confidence
from masked_diffusion.samplers.cut import find_cut
from masked_diffusion.samplers.few_ids import FewIdsSoftmax, few_ids_softmax
from masked_diffusion.samplers.largest import at_least_kth
from masked_diffusion.samplers.vocabulary import TiledSoftmax, tiled_softmax

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
    unless its name says raw. Nothing of the size of the logits is written.

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
    if not len(raw_MV):
        return TokenSamples(
            torch.zeros(0, dtype=torch.int64, device=raw_MV.device), raw_MV.new_zeros(0)
        )
    is_greedy = temperature == 0
    softmax = _softmax(raw_MV, temperature=temperature or 1.0, top_p=top_p, top_k=top_k)
    if is_greedy or greedy_M is not None:
        token_ids_M = raw_MV.argmax(dim=-1)
    if not is_greedy:
        drawn_M = softmax.draw(uniforms_M.to(raw_MV.device))
        token_ids_M = drawn_M if greedy_M is None else token_ids_M.where(greedy_M, drawn_M)
    if confidence in _RAW:
        is_filtered = isinstance(softmax, FewIdsSoftmax) or softmax.cut is not None
        if is_filtered or temperature not in (0, 1):
            softmax = tiled_softmax(raw_MV, temperature=1.0, cut=None)
    return TokenSamples(token_ids_M, _measure(confidence, softmax, token_ids_M))


def _softmax(
    logits_MV: Tensor, *, temperature: float, top_p: float | None, top_k: int | None
) -> TiledSoftmax | FewIdsSoftmax:
    has_top_p = top_p is not None and top_p < 1
    if top_k and not has_top_p and top_k < logits_MV.shape[1]:
        return few_ids_softmax(at_least_kth(logits_MV, top_k), temperature=temperature)
    cut = find_cut(logits_MV, top_p=top_p, top_k=top_k, temperature=temperature)
    return tiled_softmax(logits_MV, temperature=temperature, cut=cut)


def _measure(
    confidence: Confidence, softmax: TiledSoftmax | FewIdsSoftmax, token_ids_M: Tensor
) -> Tensor:
    if confidence in ("probability", "raw_probability"):
        return softmax.probabilities(token_ids_M)
    if confidence == "margin":
        return softmax.margins()
    return softmax.negative_entropies()


def filter_logits(logits_MV: Tensor, *, top_p: float | None, top_k: int | None) -> Tensor:
    """Lowers the logits outside the nucleus and the top k to the lowest float32.

    Returns:
        [M, V] float32; the input itself where nothing is filtered.
    """
    cut = find_cut(logits_MV, top_p=top_p, top_k=top_k)
    if cut is None:
        return logits_MV
    ranks_MV = (logits_MV == cut.boundary_M1).cumsum(-1) - 1
    return logits_MV.masked_fill(~cut.keeps(logits_MV, ranks_MV), torch.finfo(torch.float32).min)
