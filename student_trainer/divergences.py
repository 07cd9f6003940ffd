"""Divergences between a teacher and a student, from log-probabilities on the same buckets.

A bucket is a token id, or the tail that stands for every id that was not kept. The last axis holds
the buckets of one position and sums to one in probability on both sides. An empty bucket is a very
negative finite number rather than -inf: `0 * (finite - finite)` is 0, `0 * (inf - inf)` is nan.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Teacher's and student's log-probs on the same buckets to nats per position."""


def forward_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """KL(teacher || student): the student covers every mode of the teacher.

    Returns:
        The shape without the last axis, in nats.

    Source: Hinton et al., arXiv:1503.02531.
    """
    return _kl(teacher_log_probs, student_log_probs)


def reverse_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """KL(student || teacher): the student keeps to modes that the teacher has.

    Source: Gu et al. (MiniLLM), arXiv:2306.08543.
    """
    return _kl(student_log_probs, teacher_log_probs)


def jensen_shannon(teacher_log_probs: Tensor, student_log_probs: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, `beta` in (0, 1) the teacher's share of the mixture.

    beta * KL(teacher || m) + (1 - beta) * KL(student || m), m = beta * teacher + (1 - beta) *
    student; beta = 0.5 is the symmetric one, at most ln 2.

    Source: Agarwal et al. (GKD), arXiv:2306.13649, equation 1, with P the teacher.
    """
    mixture_log_probs = torch.logaddexp(
        teacher_log_probs + math.log(beta), student_log_probs + math.log1p(-beta)
    )
    return beta * _kl(teacher_log_probs, mixture_log_probs) + (1.0 - beta) * _kl(
        student_log_probs, mixture_log_probs
    )


def get_divergence(name: str, *, jsd_beta: float) -> Divergence:
    """Looks a divergence up by its configured name."""
    table: dict[str, Divergence] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jensen_shannon, beta=jsd_beta),
    }
    if name not in table:
        raise ValueError(f"unknown divergence {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    # Rounding can leave a true zero at -1e-8. The value is lifted, the gradient is left alone:
    # clamping it too would stop learning wherever the two nearly agree.
    return kl + (kl.clamp(min=0) - kl).detach()
