"""Which row of a model's output is about a token: found by asking it for tokens that we know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families.base import Denoiser, padding_mask
from masked_diffusion.families.info import Alignment
from masked_diffusion.families.probe_passages import encoded_passages

Verdict = Literal["aligned", "shifted", "inconclusive"]

MAX_TOKENS = 128
"""Of a passage; one forward of four such rows is the whole cost."""
HELD_STRIDE = 6
"""Every so many tokens one is held out, so that its neighbours on both sides are given."""
HELD_OFFSETS = (2, 5)
MIN_HELD = 12
NUM_STANDARD_ERRORS = 4.0
"""A model of random weights passes this by chance less than once in ten thousand loads."""
_TOO_FEW = "no tokenizer, or no built-in passage in its vocabulary"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well the held tokens are known from the rows that one alignment reads."""

    log_likelihood: float
    """Mean over held tokens, in nats."""
    information: float
    """Mean over held tokens, in nats: the token's log-likelihood minus that of the other held
    tokens at the same row. Zero where a row knows nothing of its own place."""
    information_se: float
    """Its standard error."""


@dataclass(frozen=True, kw_only=True)
class AlignmentProbe:
    """What the probe saw."""

    verdict: Verdict
    num_held: int
    """Tokens that were asked for; 0 where no passage could be used."""
    passages: tuple[str, ...] = ()
    aligned: Reading | None = None
    shifted: Reading | None = None
    difference: float = 0.0
    """Log-likelihood read aligned minus read shifted, paired, mean over held tokens, in nats."""
    difference_se: float = 0.0
    """Its standard error."""

    def __str__(self) -> str:
        if self.aligned is None or self.shifted is None:
            return f"inconclusive ({_TOO_FEW})"
        return (
            f"{self.verdict} (mean log-likelihood of {self.num_held} held tokens: "
            f"{self.aligned.log_likelihood:.2f} nats read aligned, "
            f"{self.shifted.log_likelihood:.2f} read shifted, difference "
            f"{self.difference:+.2f} +- {self.difference_se:.2f})"
        )


@torch.no_grad()
def probe_alignment(denoiser: Denoiser) -> AlignmentProbe:
    """Reads held-out tokens of known passages at their own row and at the row before.

    A verdict needs two things, each by `NUM_STANDARD_ERRORS`: one reading is likelier than the
    other, and it tells its own token from the other held ones. The second keeps random weights
    out: with a tied head their rows repeat their own input, which is unlikelier than knowing
    nothing, so the readings differ although neither is trained.
    """
    passages = _usable_passages(denoiser)
    if not passages:
        return AlignmentProbe(verdict="inconclusive", num_held=0)
    likelihoods, informations = [], []
    for row in _held_rows(denoiser, list(passages.values())):
        likelihood_M2, information_M2 = _read(denoiser, *row)
        likelihoods.append(likelihood_M2)
        informations.append(information_M2)
    likelihood_M2, information_M2 = torch.cat(likelihoods), torch.cat(informations)
    if len(likelihood_M2) < MIN_HELD:
        return AlignmentProbe(verdict="inconclusive", num_held=0)
    readings = [
        Reading(
            log_likelihood=float(likelihood_M2[:, column].mean()),
            information=float(information_M2[:, column].mean()),
            information_se=_standard_error(information_M2[:, column]),
        )
        for column in (0, 1)
    ]
    difference_M = likelihood_M2[:, 0] - likelihood_M2[:, 1]
    difference, difference_se = float(difference_M.mean()), _standard_error(difference_M)
    return AlignmentProbe(
        verdict=_verdict(readings[0], readings[1], difference, difference_se),
        num_held=len(difference_M),
        passages=tuple(passages),
        aligned=readings[0],
        shifted=readings[1],
        difference=difference,
        difference_se=difference_se,
    )


def _usable_passages(denoiser: Denoiser) -> dict[str, Tensor]:
    if denoiser.tokenizer is None:
        return {}
    max_length = min(MAX_TOKENS, denoiser.info.max_length)
    return encoded_passages(denoiser.tokenizer, max_length=max_length)


def _held_rows(
    denoiser: Denoiser, passages: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Runs all passages in one batch; gives per row its ids, held positions and raw states."""
    special = torch.tensor(denoiser.info.special_token_ids)
    ids, held = [], []
    for ids_L in passages:
        for offset in HELD_OFFSETS:
            held_L = torch.arange(len(ids_L)) % HELD_STRIDE == offset
            held_L &= ~torch.isin(ids_L, special)
            # A neighbour's own id at its own row would be mistaken for knowledge of this one.
            held_L[1:] &= ids_L[1:] != ids_L[:-1]
            held_L[:-1] &= ids_L[:-1] != ids_L[1:]
            ids.append(ids_L)
            held.append(held_L)
    lengths_B = torch.tensor([len(row) for row in ids])
    states = [_corrupt(denoiser, *row) for row in zip(ids, held, strict=True)]
    states_BL = pad_sequence(states, batch_first=True)
    mask_BL = padding_mask(lengths_B, states_BL.shape[1])
    raw_BLD = denoiser.raw_hidden_states(
        states_BL.to(denoiser.device),
        None if mask_BL is None else mask_BL.to(denoiser.device),
        times_B=torch.full((len(ids),), 1 / HELD_STRIDE, device=denoiser.device),
    )
    for ids_L, held_L, raw_LD in zip(ids, held, raw_BLD, strict=True):
        yield ids_L, held_L.nonzero()[:, 0], raw_LD


def _corrupt(denoiser: Denoiser, ids_L: Tensor, held_L: Tensor) -> Tensor:
    """Puts the family's noise in the place of the held tokens."""
    if denoiser.info.noise == "absorbing":
        return ids_L.masked_fill(held_L, denoiser.info.mask_token_id)
    generator = torch.Generator().manual_seed(0)
    noise_L = torch.randint(denoiser.info.vocab_size, ids_L.shape, generator=generator)
    return torch.where(held_L, noise_L, ids_L)


def _read(
    denoiser: Denoiser, ids_L: Tensor, held_M: Tensor, raw_LD: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-likelihood and information of a row's held tokens: two of [M, 2] float64.

    Column 0 is read at the token's own row, column 1 at the row before.
    """
    tokens_M = ids_L[held_M]
    likelihoods, informations = [], []
    for rows_M in (held_M, held_M - 1):
        logits_MV = denoiser.logits(raw_LD[rows_M.to(raw_LD.device)])
        log_probs_MM = logits_MV.log_softmax(-1)[:, tokens_M.to(logits_MV.device)].double().cpu()
        own_M = log_probs_MM.diagonal()
        others_MM = _others(ids_L, held_M)
        mean_M = (log_probs_MM * others_MM).sum(-1) / others_MM.sum(-1)
        likelihoods.append(own_M)
        informations.append(own_M - mean_M)
    known_M = _others(ids_L, held_M).any(-1)
    return torch.stack(likelihoods, -1)[known_M], torch.stack(informations, -1)[known_M]


def _others(ids_L: Tensor, held_M: Tensor) -> Tensor:
    """[M, M] bool: tokens that a held one is compared with, alien to it and to its neighbours."""
    tokens_M = ids_L[held_M]
    near_M3 = torch.stack(
        [tokens_M, ids_L[held_M - 1], ids_L[(held_M + 1).clamp(max=len(ids_L) - 1)]], -1
    )
    return (tokens_M[None, :, None] != near_M3[:, None, :]).all(-1)


def _standard_error(values_M: Tensor) -> float:
    return float(values_M.std() / len(values_M) ** 0.5)


def _verdict(
    aligned: Reading, shifted: Reading, difference: float, difference_se: float
) -> Verdict:
    winner: Alignment = "aligned" if difference > 0 else "shifted"
    reading = aligned if difference > 0 else shifted
    is_decisive = abs(difference) > NUM_STANDARD_ERRORS * difference_se
    is_informed = reading.information > NUM_STANDARD_ERRORS * reading.information_se
    return winner if is_decisive and is_informed else "inconclusive"
