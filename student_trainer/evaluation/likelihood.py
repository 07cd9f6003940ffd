"""Held-out likelihood: an upper bound on what a denoiser spends on each sequence."""

from dataclasses import dataclass

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from student_trainer.evaluation.forwards import evaluating, masked_hidden, vocabulary_chunks
from student_trainer.evaluation.intervals import ci95_half_width
from student_trainer.evaluation.states import EvaluationStates


@dataclass(frozen=True, kw_only=True)
class NelboResult:
    """An upper bound on the negative log-likelihood, in nats per token."""

    per_sequence: np.ndarray
    """[N] float64."""
    mean: float
    ci95: float
    """Half width of the 95 % interval of the mean over sequences."""


def nelbo(denoiser: Denoiser, states: EvaluationStates, *, batch_size: int) -> NelboResult:
    """Estimates the mean NELBO of at least two sequences; see `nelbo_by_sequence`."""
    per_sequence = nelbo_by_sequence(denoiser, states, batch_size=batch_size)
    return NelboResult(
        per_sequence=per_sequence,
        mean=float(per_sequence.mean()),
        ci95=ci95_half_width(per_sequence),
    )


@torch.inference_mode()
def nelbo_by_sequence(
    denoiser: Denoiser, states: EvaluationStates, *, batch_size: int
) -> np.ndarray:
    """Estimates the NELBO of each sequence: sum of masked CE / (t * maskable positions).

    Exact over the vocabulary without the mask token. With n maskable positions t is k/n for k
    uniform in 1..n, which is unbiased for the linear schedule's bound without a smallest t, and
    makes a state's value the mean CE over its k masked positions: no 1/t left to spread it, and
    a model that is uniform gets log(V - 1) exactly.

    Returns:
        [N] float64, in nats per token.

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
        for rows, masked_BL, hidden_MD in masked_hidden(denoiser, states, batch_size):
            rows_M = (rows.start + masked_BL.nonzero()[:, 0]).cpu()
            labels_M = states.x0_BL[rows][states.masked_BL[rows]].to(hidden_MD.device)
            for part in vocabulary_chunks(len(hidden_MD), denoiser.info.vocab_size):
                log_probs_MV = denoiser.logits(hidden_MD[part]).log_softmax(dim=-1)
                ce_M = -log_probs_MV.gather(-1, labels_M[part, None]).squeeze(-1)
                weighted_M = ce_M.double().cpu() * weights_B[rows_M[part]]
                totals_N.index_add_(0, states.sequences_B[rows_M[part]], weighted_M)
    return totals_N.numpy()
