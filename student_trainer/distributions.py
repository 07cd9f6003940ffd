"""The teacher's distributions as the loss sees them: a chunk of positions at a time.

Every distribution, the teacher's and the student's, has the same support: ids below the real
vocabulary size except the mask id, renormalised there. Rows of a head past the real vocabulary
are padding that nobody trained; the mask is never a prediction.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_ZERO = -1e30
"""Log-probability of what cannot happen. Its exponential is exactly 0 in float32 and float64, and
unlike -inf it gives no nan in a difference nor in a gradient."""

MIN_TAIL_LOG_MASS = -87.0
"""A softmax leaves some mass on every id, so a tail of -inf is a mass that float32 rounded away
(its smallest normal number is exp(-87.3)). Taken literally it makes reverse KL infinite."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The support of every distribution: ids below `vocab_size` except `mask_token_id`."""

    vocab_size: int
    mask_token_id: int

    def __post_init__(self) -> None:
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id must be an id below vocab_size {self.vocab_size}, "
                f"got {self.mask_token_id}"
            )

    @property
    def support_size(self) -> int:
        return self.vocab_size - 1


class Head(Protocol):
    """What turns the teacher's hidden states into its logits."""

    def logits(self, hidden_MD: Tensor, *, vocab_size: int) -> Tensor:
        """Returns [M, vocab_size], without a gradient."""
        ...


@dataclass(frozen=True, eq=False)
class TeacherHead:
    """The teacher's output projection: logits = hidden @ weight.T + bias, then scaled and capped.

    With `logit_soft_cap` they are cap * tanh(scale * logits / cap), as in Gemma 2.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    @torch.no_grad()
    def logits(self, hidden_MD: Tensor, *, vocab_size: int) -> Tensor:
        """Returns [M, vocab_size] in the wider dtype of hidden and weight, without a gradient."""
        weight_VD = self.weight_VD[:vocab_size]
        dtype = torch.promote_types(hidden_MD.dtype, weight_VD.dtype)
        bias_V = None if self.bias_V is None else self.bias_V[:vocab_size].to(dtype)
        logits_MV = F.linear(hidden_MD.to(dtype), weight_VD.to(dtype), bias_V)
        if self.logit_scale != 1.0:
            logits_MV *= self.logit_scale
        if self.logit_soft_cap is not None:
            logits_MV = logits_MV.div_(self.logit_soft_cap).tanh_().mul_(self.logit_soft_cap)
        return logits_MV


@dataclass(frozen=True, eq=False)
class HiddenTargets:
    """The teacher's last hidden states; the full distribution is formed here from its head."""

    hidden_MD: Tensor
    head: Head

    @property
    def num_positions(self) -> int:
        return self.hidden_MD.shape[0]

    def log_probs(
        self, rows: slice, student_MV: Tensor, *, vocabulary: Vocabulary, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of teacher and student on shared buckets, here every id; see `Targets`."""
        logits_MV = self.head.logits(self.hidden_MD[rows], vocab_size=vocabulary.vocab_size)
        return _dense_log_probs(logits_MV, student_MV, vocabulary, temperature), student_MV


@dataclass(frozen=True, eq=False)
class LogitsTargets:
    """The teacher's logits or log-probs; any offset per row, any number of padded columns."""

    logits_MV: Tensor

    @property
    def num_positions(self) -> int:
        return self.logits_MV.shape[0]

    def log_probs(
        self, rows: slice, student_MV: Tensor, *, vocabulary: Vocabulary, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of teacher and student on shared buckets, here every id; see `Targets`."""
        if self.logits_MV.shape[-1] < vocabulary.vocab_size:
            raise ValueError(
                f"logits_MV has {self.logits_MV.shape[-1]} columns, fewer than the "
                f"vocabulary's {vocabulary.vocab_size}"
            )
        logits_MV = self.logits_MV[rows]
        return _dense_log_probs(logits_MV, student_MV, vocabulary, temperature), student_MV


@dataclass(frozen=True, eq=False)
class TopKTargets:
    """The teacher's K most likely ids and the mass of all others, which is one bucket.

    The tail is never renormalised away: that would teach the student that nothing else can occur.
    By the data-processing inequality a divergence on these buckets is at most the dense one, and
    equal to it where K covers the support. `log_normalizer_M` and `tail_log_mass_M` hold at the
    distillation temperature, since neither follows from K log-probs at temperature 1.
    """

    token_ids_MK: Tensor
    """int64, distinct within a row; whatever stands where `valid_MK` is false is ignored."""
    valid_MK: Tensor
    """bool: false where a row keeps fewer than K ids."""
    log_probs_MK: Tensor
    """At temperature 1, normalised over the support."""
    log_normalizer_M: Tensor
    """logsumexp over the whole support of log_probs / temperature; 0 at temperature 1."""
    tail_log_mass_M: Tensor
    """Log of the mass outside the kept ids at the distillation temperature; may be -inf."""

    @property
    def num_positions(self) -> int:
        return self.token_ids_MK.shape[0]

    def log_probs(
        self, rows: slice, student_MV: Tensor, *, vocabulary: Vocabulary, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of teacher and student on K kept ids and the tail: two of [M, K + 1]."""
        valid_MK = self.valid_MK[rows]
        # The mask id is outside the support, so it is a harmless place for absent entries.
        ids_MK = self.token_ids_MK[rows].masked_fill(~valid_MK, vocabulary.mask_token_id)
        teacher = self._teacher_buckets(rows, student_MV.dtype, vocabulary, temperature)
        return teacher, _student_buckets(student_MV, ids_MK, valid_MK)

    @torch.no_grad()
    def _teacher_buckets(
        self, rows: slice, dtype: torch.dtype, vocabulary: Vocabulary, temperature: float
    ) -> Tensor:
        valid_MK = self.valid_MK[rows]
        log_normalizer_M1 = self.log_normalizer_M[rows].to(dtype).unsqueeze(-1)
        kept_MK = self.log_probs_MK[rows].to(dtype) / temperature - log_normalizer_M1
        kept_MK = kept_MK.masked_fill(~valid_MK, LOG_ZERO)
        # Where every id is kept there is nothing in the tail, whatever rounding left in it.
        covers_M1 = valid_MK.sum(-1, keepdim=True) >= vocabulary.support_size
        tail_M1 = self.tail_log_mass_M[rows].to(dtype).unsqueeze(-1).clamp(min=MIN_TAIL_LOG_MASS)
        tail_M1 = tail_M1.masked_fill(covers_M1, LOG_ZERO)
        # Log-probs that travelled as float16 sum to 1 +- 1e-3; unmended, KL could be negative.
        return torch.log_softmax(torch.cat([kept_MK, tail_M1], dim=-1), dim=-1)


Targets = HiddenTargets | LogitsTargets | TopKTargets
"""What the teacher said at M positions. Each knows `num_positions` and
`log_probs(rows, student_MV, vocabulary=, temperature=)`: for one chunk of positions and the
student's log-probs [m, vocab_size] at `temperature`, the log-probs of teacher and student on the
same buckets, in the student's dtype; only the student's carries a gradient."""


@torch.no_grad()
def _dense_log_probs(
    logits_MV: Tensor, student_MV: Tensor, vocabulary: Vocabulary, temperature: float
) -> Tensor:
    cut_MV = logits_MV[:, : vocabulary.vocab_size].to(student_MV.dtype, copy=True)
    cut_MV[:, vocabulary.mask_token_id] = LOG_ZERO
    return torch.log_softmax(cut_MV.div_(temperature), dim=-1)


def _student_buckets(student_MV: Tensor, ids_MK: Tensor, valid_MK: Tensor) -> Tensor:
    kept_MK = student_MV.gather(-1, ids_MK).masked_fill(~valid_MK, LOG_ZERO)
    # log(1 - sum of kept) would lose every digit where the kept ids hold nearly all the mass.
    rest_MV = student_MV.scatter(-1, ids_MK, LOG_ZERO)
    tail_M1 = torch.logsumexp(rest_MV, dim=-1, keepdim=True)
    return torch.cat([kept_MK, tail_M1], dim=-1)
