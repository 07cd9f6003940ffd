"""Cross-entropy with the data and distillation from the teacher at masked positions.

Both terms are sums over positions with the same weights, divided by the same number:
`total = (1 - alpha) * ce + alpha * kd`. `loss_config` names the weights and the divisor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.distributions import (
    HiddenTargets,
    LogitsTargets,
    Targets,
    TeacherHead,
    TopKTargets,
    Vocabulary,
)
from student_trainer.divergences import get_divergence
from student_trainer.fused_linear import ChunkLoss, ChunkPlan, chunked_linear_loss
from student_trainer.loss_config import LossConfig, normalizer_count, position_weights

__all__ = [
    "NUM_TIME_BUCKETS",
    "UNKNOWN_LABEL",
    "HiddenTargets",
    "LogitsTargets",
    "LossConfig",
    "LossParts",
    "Targets",
    "TeacherHead",
    "TopKTargets",
    "Vocabulary",
    "distillation_loss",
    "normalizer_count",
    "position_weights",
]

NUM_TIME_BUCKETS = 4
"""Equal ranges of t in (0, 1] for which losses are reported apart."""

UNKNOWN_LABEL = -100
"""Label of a position whose true token is unknown, as everywhere in torch and transformers."""


@dataclass(frozen=True, eq=False)
class LossParts:
    """One scalar to minimise and what it is made of, in nats, weighted and normalised."""

    total: Tensor
    """(1 - alpha) * ce + alpha * kd; differentiable."""
    ce: Tensor | None
    """Detached; None without labels."""
    kd: Tensor | None
    """Detached, with the temperature squared in it; None at alpha 0."""
    by_time: Tensor
    """[3 * NUM_TIME_BUCKETS], detached, of each range of t: positions, and the plain sums of the
    cross-entropy and of the divergence (times the temperature squared) over them."""


def distillation_loss(
    hidden_MD: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    *,
    vocabulary: Vocabulary,
    labels_M: Tensor | None,
    weights_M: Tensor,
    targets: Targets | None,
    config: LossConfig,
    normalizer: float,
    t_M: Tensor | None = None,
) -> LossParts:
    """Computes the loss of M masked positions without ever holding all of their logits.

    Args:
        hidden_MD: The student's last hidden states; row m predicts the token of position m.
        head_weight: [at least vocab_size, D]; rows past the vocabulary are ignored.
        labels_M: int64 true tokens, UNKNOWN_LABEL where unknown (no cross-entropy there); may be
            None at alpha 1.
        weights_M: From `position_weights`.
        targets: The teacher's distributions at the same positions; not looked at when alpha is 0.
        normalizer: The global sum of `normalizer_count`.
        t_M: Mask probability of the state of each position, for `by_time`; None counts as 1.

    Raises:
        ValueError: If labels or targets are missing that `config` needs, sizes do not agree, or
            the normaliser is not positive although there are positions.
    """
    batch = _Batch(
        labels_M,
        weights_M,
        None if config.alpha == 0.0 else targets,
        vocabulary,
        config,
        t_M,
    )
    batch.check(hidden_MD, head_weight, normalizer)
    # Zero positions everywhere give a zero normaliser: a zero loss then, not 0 / 0.
    divisor = normalizer if normalizer > 0 else 1.0
    plan = ChunkPlan(
        loss=batch.loss_of_chunk,
        num_parts=2 + 3 * NUM_TIME_BUCKETS,
        vocabulary=vocabulary,
        max_chunk_elements=config.max_chunk_elements,
        divisor=divisor,
    )
    loss = chunked_linear_loss(hidden_MD, head_weight, head_bias, plan)
    ce, kd = (loss.parts[:2] / divisor).unbind()
    return LossParts(
        total=loss.objective,
        ce=None if labels_M is None else ce,
        kd=None if batch.targets is None else kd,
        by_time=loss.parts[2:],
    )


@dataclass(frozen=True, eq=False)
class _Batch:
    labels_M: Tensor | None
    weights_M: Tensor
    targets: Targets | None
    vocabulary: Vocabulary
    config: LossConfig
    t_M: Tensor | None

    def check(self, hidden_MD: Tensor, head_weight: Tensor, normalizer: float) -> None:
        self._check_what_is_needed()
        num_positions, vocab_size = hidden_MD.shape[0], self.vocabulary.vocab_size
        if num_positions > 0 and not normalizer > 0:
            raise ValueError(f"normalizer must be positive, got {normalizer}")
        if head_weight.shape[0] < vocab_size:
            raise ValueError(
                f"head_weight has {head_weight.shape[0]} rows, fewer than the vocabulary's "
                f"{vocab_size}"
            )
        sizes = {"weights_M": self.weights_M.shape[0]}
        if self.labels_M is not None:
            sizes["labels_M"] = self.labels_M.shape[0]
        if self.targets is not None:
            sizes["targets"] = self.targets.num_positions
        for name, size in sizes.items():
            if size != num_positions:
                raise ValueError(f"{name} holds {size} positions, hidden_MD {num_positions}")

    def _check_what_is_needed(self) -> None:
        alpha = self.config.alpha
        if self.targets is None and alpha > 0.0:
            raise ValueError(f"alpha is {alpha} but there are no targets; only alpha 0 needs none")
        if self.labels_M is None and alpha < 1.0:
            raise ValueError(f"alpha is {alpha} but there are no labels; only alpha 1 needs none")
        if self.labels_M is None and self.config.weighting == "path":
            raise ValueError(
                "weighting 'path' needs labels, got None; use 'inv_t' or 'none' without"
            )

    def loss_of_chunk(self, logits_MV: Tensor, rows: slice) -> ChunkLoss:
        alpha, temperature = self.config.alpha, self.config.temperature
        weights_M = self.weights_M[rows].to(logits_MV.dtype)
        ce_sum = kd_sum = logits_MV.new_zeros(())
        ce_M = divergence_M = logits_MV.new_zeros(len(weights_M))
        log_probs_MV = None
        if self.labels_M is not None:
            log_probs_MV = torch.log_softmax(logits_MV, dim=-1)
            # Where only the teacher's term is trained, the cross-entropy is reported: no graph.
            reported_MV = log_probs_MV.detach() if alpha == 1.0 else log_probs_MV
            ce_M, known_M = _cross_entropy(reported_MV, self.labels_M[rows])
            if self.config.weighting == "path":
                weights_M = weights_M * (1.0 + known_M * torch.exp(-ce_M.detach()))
            ce_sum = (weights_M * ce_M).sum()
        if self.targets is not None:
            if log_probs_MV is None or temperature != 1.0:
                log_probs_MV = torch.log_softmax(logits_MV / temperature, dim=-1)
            divergence_M = self._divergence(self.targets, log_probs_MV, rows)
            kd_sum = (weights_M * divergence_M).sum() * temperature**2
        objective = (1.0 - alpha) * ce_sum + alpha * kd_sum
        sums = torch.stack([ce_sum.detach(), kd_sum.detach()])
        by_time = self._by_time(ce_M.detach(), divergence_M.detach() * temperature**2, rows)
        return ChunkLoss(objective, torch.cat([sums, by_time]))

    def _by_time(self, ce_M: Tensor, kd_M: Tensor, rows: slice) -> Tensor:
        values_3M = torch.stack([torch.ones_like(ce_M), ce_M, kd_M])
        t_M = torch.ones_like(ce_M) if self.t_M is None else self.t_M[rows]
        # One-hot and not index_add, whose order of additions a GPU does not keep.
        ranges_N = torch.arange(NUM_TIME_BUCKETS, device=ce_M.device)
        chosen_MN = (_time_buckets(t_M).unsqueeze(-1) == ranges_N).to(ce_M.dtype)
        return (values_3M @ chosen_MN).flatten()

    def _divergence(self, targets: Targets, student_MV: Tensor, rows: slice) -> Tensor:
        divergence = get_divergence(self.config.divergence, jsd_beta=self.config.jsd_beta)
        teacher, student = targets.log_probs(
            rows,
            student_MV,
            vocabulary=self.vocabulary,
            temperature=self.config.temperature,
        )
        return divergence(teacher, student)


def _time_buckets(t_M: Tensor) -> Tensor:
    """[M] int64: the range of t that each position is in."""
    return ((t_M * NUM_TIME_BUCKETS).ceil().long() - 1).clamp(0, NUM_TIME_BUCKETS - 1)


def _cross_entropy(log_probs_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy [M], 0 where the label is unknown, and where it is known."""
    known_M = labels_M != UNKNOWN_LABEL
    ids_M1 = labels_M.masked_fill(~known_M, 0).unsqueeze(-1)
    ce_M = -log_probs_MV.gather(-1, ids_M1).squeeze(-1)
    return ce_M.masked_fill(~known_M, 0.0), known_M
