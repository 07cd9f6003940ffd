"""Held-out evaluation: likelihood bound and agreement with the teacher on fixed states."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser, DenoiserInfo, padding_mask
from student_trainer.evaluation_states import EvaluationStates
from student_trainer.intervals import ci95_half_width

MAX_CHUNK_ELEMENTS = 4_194_304  # 16 MiB of float32 logits at a time


@dataclass(frozen=True, kw_only=True)
class NelboResult:
    """An upper bound on the negative log-likelihood, in nats per token."""

    per_sequence: np.ndarray
    """[N] float64."""
    mean: float
    ci95: float
    """Half width of the 95 % interval of the mean over sequences."""


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


@dataclass(frozen=True, kw_only=True)
class KlToTeacher:
    bins: list[KlBin]
    """By rising t; bins without a state are left out."""
    overall: KlBin


@torch.inference_mode()
def nelbo(denoiser: Denoiser, states: EvaluationStates, *, batch_size: int) -> NelboResult:
    """Estimates the NELBO of each sequence: sum of masked CE / (t * maskable positions).

    Exact over the vocabulary without the mask token. With n maskable positions t is k/n for k
    uniform in 1..n, which is unbiased for the linear schedule's bound without a smallest t, and
    makes a state's value the mean CE over its k masked positions: no 1/t left to spread it, and
    a model that is uniform gets log(V - 1) exactly.

    Raises:
        ValueError: uniform noise, whose bound is another.

    Source: LLaDA, arXiv:2502.09992 (the form with a uniform number of masked tokens).
    """
    if denoiser.info.noise != "absorbing":
        raise ValueError(
            f"{denoiser.info.name} has {denoiser.info.noise} noise; this bound holds for masks only"
        )
    totals_N = torch.zeros(states.num_sequences, dtype=torch.float64)
    masks_N = torch.bincount(states.sequences_B, minlength=states.num_sequences)
    weights_B = 1.0 / (states.masked_BL.sum(dim=1) * masks_N[states.sequences_B]).double()
    with evaluating(denoiser):
        for rows, masked_BL, hidden_MD in _masked_hidden(denoiser, states, batch_size):
            rows_M = (rows.start + masked_BL.nonzero()[:, 0]).cpu()
            labels_M = states.x0_BL[rows][states.masked_BL[rows]].to(hidden_MD.device)
            for part in _chunks(len(hidden_MD), denoiser.info.vocab_size):
                log_probs_MV = denoiser.logits(hidden_MD[part]).log_softmax(dim=-1)
                ce_M = -log_probs_MV.gather(-1, labels_M[part, None]).squeeze(-1)
                weighted_M = ce_M.double().cpu() * weights_B[rows_M[part]]
                totals_N.index_add_(0, states.sequences_B[rows_M[part]], weighted_M)
    per_sequence = totals_N.numpy()
    return NelboResult(
        per_sequence=per_sequence,
        mean=float(per_sequence.mean()),
        ci95=ci95_half_width(per_sequence),
    )


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

    Bins are equally wide in t; every position counts once.

    Raises:
        ValueError: The two do not share vocabulary, mask token, tokenizer and noise.
    """
    _check_comparable(teacher.info, student.info)
    # Per bin: sum of KL, positions that agree, positions.
    sums_K3 = torch.zeros(num_bins, 3, dtype=torch.float64)
    bins_B = (states.t_B.double() * num_bins).ceil().long().clamp(1, num_bins) - 1
    with evaluating(teacher), evaluating(student):
        pairs = zip(
            _masked_hidden(teacher, states, batch_size),
            _masked_hidden(student, states, batch_size),
            strict=True,
        )
        for (rows, masked_BL, teacher_MD), (_, _, student_MD) in pairs:
            bins_M = bins_B[(rows.start + masked_BL.nonzero()[:, 0]).cpu()]
            for part in _chunks(len(teacher_MD), teacher.info.vocab_size):
                teacher_MV = teacher.logits(teacher_MD[part]).log_softmax(dim=-1)
                student_MV = student.logits(student_MD[part]).log_softmax(dim=-1)
                sums_K3.index_add_(0, bins_M[part], _agreement(teacher_MV, student_MV).cpu())
    return _kl_of_sums(sums_K3)


def _agreement(teacher_log_probs_MV: Tensor, student_log_probs_MV: Tensor) -> Tensor:
    """Returns [M, 3] float64: KL in nats, 1 where the most probable token agrees, 1."""
    # An excluded id has probability 0 and finite logits on both sides, so it adds 0.
    differences_MV = teacher_log_probs_MV - student_log_probs_MV
    kl_M = (teacher_log_probs_MV.exp() * differences_MV).sum(dim=-1, dtype=torch.float64)
    agrees_M = teacher_log_probs_MV.argmax(dim=-1) == student_log_probs_MV.argmax(dim=-1)
    return torch.stack([kl_M, agrees_M.double(), torch.ones_like(kl_M)], dim=1)


def _kl_of_sums(sums_K3: Tensor) -> KlToTeacher:
    num_bins = len(sums_K3)

    def bin_of(low: int, high: int, sums_3: Tensor) -> KlBin:
        kl, agreeing, positions = sums_3.tolist()
        return KlBin(
            t_low=low / num_bins,
            t_high=high / num_bins,
            kl_nats=kl / positions,
            top1_agreement=agreeing / positions,
            num_positions=int(positions),
        )

    filled = [index for index in range(num_bins) if sums_K3[index, 2] > 0]
    return KlToTeacher(
        bins=[bin_of(index, index + 1, sums_K3[index]) for index in filled],
        overall=bin_of(0, num_bins, sums_K3.sum(dim=0)),
    )


def _masked_hidden(
    denoiser: Denoiser, states: EvaluationStates, batch_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields, batch by batch, its rows, where they are masked, and the hidden states there."""
    device = denoiser.device
    for start in range(0, len(states.t_B), batch_size):
        rows = slice(start, start + batch_size)
        lengths_B = states.lengths_B[rows].to(device)
        width = int(lengths_B.max())
        masked_BL = states.masked_BL[rows, :width].to(device)
        # Block diffusion is trained and bounded with the blocks before a position's own clean.
        is_blocked = denoiser.info.attention == "block_causal"
        hidden_BLD = denoiser.hidden_states(
            states.xt_BL[rows, :width].to(device),
            padding_mask(lengths_B, width),
            clean_ids_BL=states.x0_BL[rows, :width].to(device) if is_blocked else None,
            times_B=states.t_B[rows].to(device),
        )
        yield rows, masked_BL, hidden_BLD[masked_BL]


def _chunks(num_positions: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, MAX_CHUNK_ELEMENTS // vocab_size)
    return (slice(start, start + size) for start in range(0, num_positions, size))


@contextmanager
def evaluating(denoiser: Denoiser) -> Iterator[None]:
    """Holds a denoiser in evaluation mode and gives it back as it was."""
    was_training = denoiser.training
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train(was_training)


def _check_comparable(teacher: DenoiserInfo, student: DenoiserInfo) -> None:
    for name in ("vocab_size", "mask_token_id", "tokenizer_fingerprint", "noise"):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(
                f"teacher and student differ in {name}: {theirs!r} and {ours!r}; "
                "a divergence needs one vocabulary and one kind of state"
            )
