"""Distributions at positions, in the encoding that was asked for; on the device until the end."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import EXCLUDED_LOGIT
from protos import codec
from teacher_server.engine.sequence import TargetSpec

HeadDistribution = codec.TopK | codec.Logits
"""What only the head can tell."""

TORCH_DTYPES: Mapping[codec.ValueDtype, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def dtype_name(dtype: torch.dtype) -> codec.ValueDtype:
    """The wire's name of a dtype.

    Raises:
        ValueError: targets cannot carry it.
    """
    for name, known in TORCH_DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(
        f"the denoiser runs in {dtype}; targets carry {', '.join(map(str, TORCH_DTYPES.values()))}"
        " only: load it with --dtype float32"
    )


def to_values(tensor: Tensor, dtype: codec.ValueDtype) -> codec.Values:
    """Copies a tensor to the CPU as wire numbers."""
    converted = tensor.detach().to(TORCH_DTYPES[dtype]).cpu().contiguous()
    bits = converted.view(torch.uint16) if dtype == "bf16" else converted
    return codec.Values(dtype=dtype, data=bits.numpy())


def encode_hidden(hidden_MD: Tensor, *, dtype: codec.ValueDtype) -> codec.Hidden:
    """Hidden states after the last norm; needs no head."""
    return codec.Hidden(values=to_values(hidden_MD, dtype))


def encode_logits(logits_MV: Tensor, *, dtype: Literal["f32", "f16"]) -> codec.Logits:
    """Log-probabilities of all ids; -inf at excluded ids, so that f16 holds them too."""
    log_probs_MV = torch.log_softmax(logits_MV.float(), dim=-1)
    excluded_MV = logits_MV <= EXCLUDED_LOGIT / 2
    return codec.Logits(values=to_values(log_probs_MV.masked_fill(excluded_MV, -torch.inf), dtype))


def encode_top_k(
    logits_MV: Tensor,
    *,
    top_k: int,
    top_p: float,
    temperatures: tuple[float, ...],
    dtype: Literal["f32", "f16"],
) -> codec.TopK:
    """The most probable ids of each row, fewer where they reach the mass `top_p`, and the tail.

    Args:
        logits_MV: [M, V] float32, `EXCLUDED_LOGIT` outside the support.
        top_k: ids kept at most; at or above the support all of it is kept.
        top_p: in (0, 1]; 1 = no such cut.

    Returns:
        Ids ascending within a row. Tails and normalisers come from the full row in float32, for
        each temperature: a truncated row cannot tell them.
    """
    excluded_V = (logits_MV <= EXCLUDED_LOGIT / 2).any(dim=0)
    support = logits_MV.shape[1] - int(excluded_V.sum())
    log_probs_MV = torch.log_softmax(logits_MV, dim=-1)
    kept_MV = _kept(log_probs_MV, top_k=min(top_k, support), top_p=top_p)
    normalizers, tails = [], []
    for temperature in temperatures:
        # Set, not divided: a high temperature would bring EXCLUDED_LOGIT back into reach.
        scaled_MV = (log_probs_MV / temperature).masked_fill(excluded_V, -torch.inf)
        normalizer_M = torch.logsumexp(scaled_MV, dim=-1)
        rest_MV = scaled_MV.masked_fill(kept_MV, -torch.inf)
        normalizers.append(normalizer_M)
        tails.append(torch.logsumexp(rest_MV, dim=-1) - normalizer_M)
    row_offsets = np.zeros(len(logits_MV) + 1, dtype=np.int32)
    np.cumsum(kept_MV.sum(dim=-1).cpu().numpy(), out=row_offsets[1:])
    shape = (len(temperatures), len(logits_MV))
    return codec.TopK(
        row_offsets=row_offsets,
        token_ids=kept_MV.nonzero()[:, 1].to(torch.int32).cpu().numpy(),
        log_probs=to_values(log_probs_MV[kept_MV], dtype),
        temperatures=np.asarray(temperatures, dtype=np.float32),
        log_normalizers=torch.stack(normalizers).cpu().numpy().reshape(shape),
        tail_log_masses=torch.stack(tails).cpu().numpy().reshape(shape),
    )


def _kept(log_probs_MV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    top_log_probs_MK, top_ids_MK = log_probs_MV.topk(top_k, dim=-1)
    needed_MK = torch.ones_like(top_ids_MK, dtype=torch.bool)
    # In float32 the mass of a peaked row reaches 1 long before its last id: no cut at 1.
    if top_p < 1:
        probs_MK = top_log_probs_MK.exp()
        # The id that crosses the mass is kept, so at least one always is.
        needed_MK = probs_MK.cumsum(dim=-1) - probs_MK < top_p
    kept_MV = torch.zeros_like(log_probs_MV, dtype=torch.bool)
    return kept_MV.scatter_(1, top_ids_MK, needed_MK)


def encode_by_head(logits_MV: Tensor, spec: TargetSpec) -> HeadDistribution:
    """Encodes as a request asks for it; "hidden" needs no head and is not for this."""
    assert spec.dtype != "bf16"
    if spec.encoding == "logits":
        return encode_logits(logits_MV, dtype=spec.dtype)
    return encode_top_k(
        logits_MV,
        top_k=spec.top_k,
        top_p=spec.top_p,
        temperatures=spec.temperatures,
        dtype=spec.dtype,
    )


def rows(distribution: HeadDistribution, start: int, stop: int) -> HeadDistribution:
    """Some rows of it; shares memory."""
    if isinstance(distribution, codec.Logits):
        return codec.Logits(values=_part(distribution.values, start, stop))
    first, last = distribution.row_offsets[start], distribution.row_offsets[stop]
    return codec.TopK(
        row_offsets=distribution.row_offsets[start : stop + 1] - first,
        token_ids=distribution.token_ids[first:last],
        log_probs=_part(distribution.log_probs, first, last),
        temperatures=distribution.temperatures,
        log_normalizers=distribution.log_normalizers[:, start:stop],
        tail_log_masses=distribution.tail_log_masses[:, start:stop],
    )


def _part(values: codec.Values, start: int, stop: int) -> codec.Values:
    return codec.Values(dtype=values.dtype, data=values.data[start:stop])


def concatenate(distributions: Sequence[HeadDistribution]) -> HeadDistribution:
    """Joins the rows of several chunks of positions, all encoded alike."""
    first = distributions[0]
    if len(distributions) == 1:
        return first
    if isinstance(first, codec.Logits):
        chunks = [part.values.data for part in distributions if isinstance(part, codec.Logits)]
        return codec.Logits(
            values=codec.Values(dtype=first.values.dtype, data=np.concatenate(chunks))
        )
    parts = [part for part in distributions if isinstance(part, codec.TopK)]
    counts = np.concatenate([np.diff(part.row_offsets) for part in parts])
    return codec.TopK(
        row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        token_ids=np.concatenate([part.token_ids for part in parts]),
        log_probs=codec.Values(
            dtype=first.log_probs.dtype,
            data=np.concatenate([part.log_probs.data for part in parts]),
        ),
        temperatures=first.temperatures,
        log_normalizers=np.concatenate([part.log_normalizers for part in parts], axis=1),
        tail_log_masses=np.concatenate([part.tail_log_masses for part in parts], axis=1),
    )
