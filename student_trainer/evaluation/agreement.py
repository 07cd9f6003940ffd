"""Agreement with the teacher on fixed states: divergence and top-1, by share of masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser, DenoiserInfo
from student_trainer.evaluation.forwards import evaluating, masked_hidden, vocabulary_chunks
from student_trainer.evaluation.intervals import ratio_ci95_half_width
from student_trainer.evaluation.states import EvaluationStates


@dataclass(frozen=True, kw_only=True)
class KlBin:
    """Agreement with the teacher over the masked positions of states with t in a range."""

    t_low: float
    t_high: float
    """The bin holds t_low < t <= t_high."""
    kl_nats: float
    """Mean KL(teacher, student) a position."""
    top1_agreement: float
    """Share of positions where both have the same most probable token."""
    num_positions: int
    num_sequences: int
    kl_ci95: float | None
    """Half width of the 95 % interval of kl_nats over sequences; None with fewer than two."""
    top1_ci95: float | None
    """Likewise of top1_agreement."""


@dataclass(frozen=True, kw_only=True)
class KlToTeacher:
    bins: list[KlBin]
    """By rising t; bins without a state are left out."""
    overall: KlBin


@torch.inference_mode()
def kl_to_teacher(
    teacher: Denoiser,
    student: Denoiser,
    states: EvaluationStates,
    *,
    batch_size: int,
    num_bins: int = 8,
) -> KlToTeacher:
    """Measures how far a student is from the teacher at the states' positions, by time.

    Bins are equally wide in t; every position counts once. Intervals take whole sequences as the
    independent draws: positions of one sequence are alike.

    Raises:
        ValueError: The two do not share vocabulary, mask token, tokenizer and noise.
    """
    check_comparable(teacher.info, student.info)
    # Per sequence and bin: sum of KL, positions that agree, positions.
    sums_NK3 = torch.zeros(states.num_sequences, num_bins, 3, dtype=torch.float64)
    bins_B = (states.t_B.double() * num_bins).ceil().long().clamp(1, num_bins) - 1
    cells_B = states.sequences_B * num_bins + bins_B
    with evaluating(teacher), evaluating(student):
        pairs = zip(
            masked_hidden(teacher, states, batch_size),
            masked_hidden(student, states, batch_size),
            strict=True,
        )
        for (rows, masked_BL, teacher_MD), (_, _, student_MD) in pairs:
            cells_M = cells_B[(rows.start + masked_BL.nonzero()[:, 0]).cpu()]
            for part in vocabulary_chunks(len(teacher_MD), teacher.info.vocab_size):
                teacher_MV = teacher.logits(teacher_MD[part]).log_softmax(dim=-1)
                student_MV = student.logits(student_MD[part]).log_softmax(dim=-1)
                found_M3 = _agreement(teacher_MV, student_MV).cpu()
                sums_NK3.view(-1, 3).index_add_(0, cells_M[part], found_M3)
    return _kl_of_sums(sums_NK3)


def _agreement(teacher_log_probs_MV: Tensor, student_log_probs_MV: Tensor) -> Tensor:
    """Returns [M, 3] float64: KL in nats, 1 where the most probable token agrees, 1."""
    # An excluded id has probability 0 and finite logits on both sides, so it adds 0.
    differences_MV = teacher_log_probs_MV - student_log_probs_MV
    kl_M = (teacher_log_probs_MV.exp() * differences_MV).sum(dim=-1, dtype=torch.float64)
    agrees_M = teacher_log_probs_MV.argmax(dim=-1) == student_log_probs_MV.argmax(dim=-1)
    return torch.stack([kl_M, agrees_M.double(), torch.ones_like(kl_M)], dim=1)


def _kl_of_sums(sums_NK3: Tensor) -> KlToTeacher:
    num_bins = sums_NK3.shape[1]
    filled = [index for index in range(num_bins) if sums_NK3[:, index, 2].any()]
    return KlToTeacher(
        bins=[
            _bin_of(sums_NK3[:, index], t_low=index / num_bins, t_high=(index + 1) / num_bins)
            for index in filled
        ],
        overall=_bin_of(sums_NK3.sum(dim=1), t_low=0, t_high=1),
    )


def _bin_of(sums_N3: Tensor, *, t_low: float, t_high: float) -> KlBin:
    kl_N, agreeing_N, positions_N = sums_N3[sums_N3[:, 2] > 0].T.numpy()
    num_positions = positions_N.sum()
    is_single = len(positions_N) == 1
    return KlBin(
        t_low=t_low,
        t_high=t_high,
        kl_nats=float(kl_N.sum() / num_positions),
        top1_agreement=float(agreeing_N.sum() / num_positions),
        num_positions=int(num_positions),
        num_sequences=len(positions_N),
        kl_ci95=None if is_single else ratio_ci95_half_width(kl_N, positions_N),
        top1_ci95=None if is_single else ratio_ci95_half_width(agreeing_N, positions_N),
    )


def check_comparable(teacher: DenoiserInfo, student: DenoiserInfo) -> None:
    for name in ("vocab_size", "mask_token_id", "tokenizer_fingerprint", "noise"):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(
                f"teacher and student differ in {name}: {theirs!r} and {ours!r}; "
                "a divergence needs one vocabulary and one kind of state"
            )
