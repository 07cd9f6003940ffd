"""The distillation loss as it is usually written: all logits of both models at once, and autograd.

Source: the weighted sum of cross-entropy and divergence of Hinton et al., arXiv:1503.02531, in the
operators of torch that are made for it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LOG_ZERO = -1e30


def loss(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    *,
    labels_M: Tensor,
    teacher_hidden_MD: Tensor,
    teacher_weight_VD: Tensor,
    mask_token_id: int,
    divergence: str,
) -> Tensor:
    """Half the cross-entropy and half the divergence, means over positions, in nats."""
    student_MV = _log_probs(hidden_MD, weight_VD, mask_token_id)
    with torch.no_grad():
        teacher_MV = _log_probs(teacher_hidden_MD, teacher_weight_VD, mask_token_id)
    ce = F.nll_loss(student_MV, labels_M)
    if divergence == "forward_kl":
        kd = _kl(teacher_MV, student_MV)
    elif divergence == "reverse_kl":
        kd = _kl(student_MV, teacher_MV)
    else:
        mixture_MV = torch.logaddexp(student_MV, teacher_MV) - math.log(2.0)
        kd = 0.5 * (_kl(teacher_MV, mixture_MV) + _kl(student_MV, mixture_MV))
    return 0.5 * ce + 0.5 * kd


def _log_probs(hidden_MD: Tensor, weight_VD: Tensor, mask_token_id: int) -> Tensor:
    logits_MV = F.linear(hidden_MD, weight_VD)
    logits_MV[:, mask_token_id] = _LOG_ZERO
    return F.log_softmax(logits_MV, dim=-1)


def _kl(log_p_MV: Tensor, log_q_MV: Tensor) -> Tensor:
    return F.kl_div(log_q_MV, log_p_MV, log_target=True, reduction="batchmean")
