"""Distributions at positions, in the encoding that was asked for; on the device until the end."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import EXCLUDED_LOGIT
from protos import codec
from teacher_server.engine.sequence import TargetSpec
from teacher_server.engine.top_k import encode_top_k
from teacher_server.engine.values import to_values

HeadDistribution = codec.TopK | codec.Logits
"""What only the head can tell."""


def encode_hidden(hidden_MD: Tensor, *, dtype: codec.ValueDtype) -> codec.Hidden:
    """Hidden states after the last norm; needs no head."""
    return codec.Hidden(values=to_values(hidden_MD, dtype))


def encode_logits(logits_MV: Tensor, *, dtype: Literal["f32", "f16"]) -> codec.Logits:
    """Log-probabilities of all ids; -inf at excluded ids, so that f16 holds them too."""
    log_probs_MV = torch.log_softmax(logits_MV.float(), dim=-1)
    excluded_MV = logits_MV <= EXCLUDED_LOGIT / 2
    return codec.Logits(values=to_values(log_probs_MV.masked_fill(excluded_MV, -torch.inf), dtype))


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
