"""Random losses to compute, and the same computed slowly: full logits, plain probabilities."""

import dataclasses
import math

import torch
from torch import Tensor

from student_trainer.losses import (
    UNKNOWN_LABEL,
    HiddenTargets,
    LogitsTargets,
    LossConfig,
    LossParts,
    Targets,
    TeacherHead,
    TopKTargets,
    Vocabulary,
    distillation_loss,
)

NUM_POSITIONS, VOCAB_SIZE, PADDED_VOCAB_SIZE, STUDENT_WIDTH, TEACHER_WIDTH = 9, 13, 16, 5, 7
MASK = 11
VOCABULARY = Vocabulary(vocab_size=VOCAB_SIZE, mask_token_id=MASK)
SUPPORT = [token for token in range(VOCAB_SIZE) if token != MASK]
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
ENCODINGS = ("hidden", "logits", "top_k", "top_k_ragged")
TEMPERATURES = (1.0, 2.0, 4.0)
NORMALIZER = 7.5


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    hidden_MD: Tensor
    weight_VD: Tensor
    bias_V: Tensor
    teacher_hidden_MD: Tensor
    teacher_head: TeacherHead
    labels_M: Tensor
    weights_M: Tensor

    def teacher_logits(self) -> Tensor:
        head = self.teacher_head
        assert head.bias_V is not None and head.logit_soft_cap is not None
        logits_MV = self.teacher_hidden_MD @ head.weight_VD.T + head.bias_V
        return head.logit_soft_cap * torch.tanh(head.logit_scale * logits_MV / head.logit_soft_cap)

    def student_logits(self) -> Tensor:
        return (self.hidden_MD @ self.weight_VD.T + self.bias_V).detach()


def make_case(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, num_positions: int = NUM_POSITIONS
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    choice_M = torch.randint(len(SUPPORT), (num_positions,), generator=generator)
    labels_M = torch.tensor(SUPPORT)[choice_M]
    labels_M[::4] = UNKNOWN_LABEL
    return Case(
        hidden_MD=draw(num_positions, STUDENT_WIDTH).to(dtype).requires_grad_(),
        weight_VD=draw(PADDED_VOCAB_SIZE, STUDENT_WIDTH).to(dtype).requires_grad_(),
        bias_V=draw(PADDED_VOCAB_SIZE).to(dtype).requires_grad_(),
        teacher_hidden_MD=draw(num_positions, TEACHER_WIDTH).to(dtype),
        teacher_head=TeacherHead(
            weight_VD=draw(PADDED_VOCAB_SIZE, TEACHER_WIDTH).to(dtype),
            bias_V=draw(PADDED_VOCAB_SIZE).to(dtype),
            logit_scale=1.5,
            logit_soft_cap=6.0,
        ),
        labels_M=labels_M,
        weights_M=torch.rand(num_positions, generator=generator, dtype=torch.float64) + 0.5,
    )


def top_k_targets(
    logits_MV: Tensor,
    *,
    num_kept: int,
    temperature: float,
    ragged: bool = False,
    log_prob_dtype: torch.dtype | None = None,
) -> TopKTargets:
    """Written as a server would: from the teacher's full row, row by row."""
    num_positions = logits_MV.shape[0]
    token_ids_MK = torch.full((num_positions, num_kept), 10**6)
    valid_MK = torch.zeros(num_positions, num_kept, dtype=torch.bool)
    log_probs_MK = torch.full((num_positions, num_kept), math.nan, dtype=logits_MV.dtype)
    log_normalizers, tails = [], []
    for row in range(num_positions):
        support = torch.tensor(SUPPORT)
        logits = logits_MV[row, support]
        log_probs = logits - logits.exp().sum().log()
        tempered = (log_probs / temperature).exp()
        kept = log_probs.argsort(descending=True)[: num_kept - row % 3 if ragged else num_kept]
        is_kept = torch.zeros(len(support), dtype=torch.bool)
        is_kept[kept] = True
        token_ids_MK[row, : len(kept)] = support[kept]
        valid_MK[row, : len(kept)] = True
        log_probs_MK[row, : len(kept)] = log_probs[kept]
        log_normalizers.append(tempered.sum().log())
        tails.append((tempered[~is_kept].sum() / tempered.sum()).log())
    if log_prob_dtype is not None:
        log_probs_MK = log_probs_MK.to(log_prob_dtype)
    return TopKTargets(
        token_ids_MK, valid_MK, log_probs_MK, torch.stack(log_normalizers), torch.stack(tails)
    )


def make_targets(case: Case, encoding: str, temperature: float) -> Targets:
    logits_MV = case.teacher_logits()
    if encoding == "hidden":
        return HiddenTargets(case.teacher_hidden_MD, case.teacher_head)
    if encoding == "logits":
        offset_M1 = torch.linspace(-5, 5, len(logits_MV), dtype=logits_MV.dtype).unsqueeze(-1)
        return LogitsTargets(logits_MV + offset_M1)
    ragged = encoding == "top_k_ragged"
    return top_k_targets(logits_MV, num_kept=4, temperature=temperature, ragged=ragged)


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum((p[i] * (p[i] / q[i]).log() for i in range(len(p)) if p[i] > 0), p.new_zeros(()))


def naive_divergence(name: str, teacher: Tensor, student: Tensor, beta: float = 0.5) -> Tensor:
    if name == "forward_kl":
        return naive_kl(teacher, student)
    if name == "reverse_kl":
        return naive_kl(student, teacher)
    mixture = beta * teacher + (1 - beta) * student
    return beta * naive_kl(teacher, mixture) + (1 - beta) * naive_kl(student, mixture)


def softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def bucketed(probs: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None:
        return probs
    positions = [SUPPORT.index(int(token)) for token in kept]
    rest = [i for i in range(len(SUPPORT)) if i not in positions]
    return torch.cat([probs[positions], probs[rest].sum().unsqueeze(0)])


def naive_loss(
    case: Case,
    config: LossConfig,
    *,
    kept: list[Tensor] | None = None,
    labels_M: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, ce, kd) from full logits and plain probabilities, one position at a time."""
    labels_M = case.labels_M if labels_M is None else labels_M
    student_MV = (case.hidden_MD @ case.weight_VD.T + case.bias_V)[:, SUPPORT]
    teacher_MV = case.teacher_logits()[:, SUPPORT]
    ce = kd = student_MV.new_zeros(())
    for row in range(len(student_MV)):
        weight = case.weights_M[row].to(student_MV.dtype)
        if labels_M[row] != UNKNOWN_LABEL:
            prob = softmax(student_MV[row])[SUPPORT.index(int(labels_M[row]))]
            if config.weighting == "path":
                weight = weight * (1 + prob.detach())
            ce = ce - weight * prob.log()
        kept_ids = None if kept is None else kept[row]
        value = naive_divergence(
            config.divergence,
            bucketed(softmax(teacher_MV[row] / config.temperature), kept_ids),
            bucketed(softmax(student_MV[row] / config.temperature), kept_ids),
            config.jsd_beta,
        )
        kd = kd + weight * value * config.temperature**2
    ce, kd = ce / NORMALIZER, kd / NORMALIZER
    return (1 - config.alpha) * ce + config.alpha * kd, ce, kd


def loss_of(
    case: Case,
    config: LossConfig,
    targets: Targets | None,
    *,
    labels_M: Tensor | None = None,
    normalizer: float = NORMALIZER,
) -> LossParts:
    return distillation_loss(
        case.hidden_MD,
        case.weight_VD,
        case.bias_V,
        vocabulary=VOCABULARY,
        labels_M=case.labels_M if labels_M is None else labels_M,
        weights_M=case.weights_M,
        targets=targets,
        config=config,
        normalizer=normalizer,
    )


def gradients_of(total: Tensor, case: Case) -> list[Tensor]:
    return list(torch.autograd.grad(total, [case.hidden_MD, case.weight_VD, case.bias_V]))


def kept_ids(targets: Targets) -> list[Tensor] | None:
    if not isinstance(targets, TopKTargets):
        return None
    return [ids[valid] for ids, valid in zip(targets.token_ids_MK, targets.valid_MK, strict=True)]


def number(part: Tensor | None) -> float:
    assert part is not None
    return float(part)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach() - expected.detach()).norm() / expected.detach().norm())
