"""What quantization costs: how far the distributions at masked positions move."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.probe_states import ProbeStates

CHUNK_ROWS = 64
"""Masked positions whose whole vocabulary is held at once."""


@dataclass(frozen=True, kw_only=True)
class QuantizationError:
    """How a quantized model differs from the one that it was made of, at masked positions."""

    kl_nats: float
    """KL(unquantized || quantized), mean over masked positions."""
    kl_standard_error: float
    """Of that mean, clustered by window of text, in nats; NaN with a single window."""
    top1_agreement_fraction: float
    """Masked positions at which both find the same token likeliest."""
    num_positions: int
    num_windows: int


@torch.no_grad()
def measure_quantization_error(
    denoiser: Denoiser, exact_MD: Tensor, quantized_MD: Tensor, states: ProbeStates
) -> QuantizationError:
    """Compares the hidden states of two bodies through the head that both share.

    Args:
        denoiser: Either one: quantization leaves the head as it is.
        exact_MD: [M, D] of the unquantized, at the masked positions of `states`.
        quantized_MD: [M, D] of the quantized.
        states: What both were run on.
    """
    kl_M, same_M = [], []
    for exact, quantized in zip(
        exact_MD.split(CHUNK_ROWS), quantized_MD.split(CHUNK_ROWS), strict=True
    ):
        log_p_MV = denoiser.logits(exact).double().log_softmax(-1)
        log_q_MV = denoiser.logits(quantized).double().log_softmax(-1)
        # An excluded id has probability 0 in both, and the difference of its logits is finite.
        kl_M.append((log_p_MV.exp() * (log_p_MV - log_q_MV)).sum(-1))
        same_M.append(log_p_MV.argmax(-1) == log_q_MV.argmax(-1))
    windows_BL = states.windows_B[:, None].expand_as(states.masked_BL)
    windows_M = windows_BL[states.masked_BL]
    mean, standard_error = _clustered_mean(torch.cat(kl_M).cpu(), windows_M)
    return QuantizationError(
        kl_nats=mean,
        kl_standard_error=standard_error,
        top1_agreement_fraction=float(torch.cat(same_M).double().mean()),
        num_positions=len(windows_M),
        num_windows=len(windows_M.unique()),
    )


def _clustered_mean(values_M: Tensor, clusters_M: Tensor) -> tuple[float, float]:
    """The mean of float64 values, and its standard error if only clusters are independent.

    Source: the linearised variance of a ratio, Cochran, Sampling Techniques, section 9A.
    """
    mean = float(values_M.mean())
    num_clusters = int(clusters_M.max()) + 1
    if num_clusters == 1:
        return mean, math.nan
    sums_C = torch.zeros(num_clusters, dtype=values_M.dtype)
    sums_C.index_add_(0, clusters_M, values_M - mean)
    variance = float((sums_C**2).sum()) * num_clusters / (num_clusters - 1)
    return mean, math.sqrt(variance) / len(values_M)
