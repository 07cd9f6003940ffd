"""Log-likelihoods of texts under a denoiser: its bound, conditional on what stands before."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser, padding_mask
from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import logits_chunks
from student_trainer.tasks.decoding import Decoding
from student_trainer.tasks.generation import GenerationRequest, generate_ids, key_of
from student_trainer.tasks.options import LikelihoodOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Tokens that are scored, and those before them."""

    context_ids: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def all_ids(self) -> tuple[int, ...]:
        return self.context_ids + self.ids


@dataclass(frozen=True, kw_only=True)
class WeightedMasks:
    """Which of N tokens are masked in each of R states, and what a state counts."""

    masked_RN: np.ndarray
    """[R, N] bool, no two rows alike."""
    weights_R: np.ndarray
    """[R] float64: the bound is the sum over states of weight times cross-entropy of the masked."""


@dataclass(frozen=True)
class _State:
    row: int
    """Of the continuation it belongs to."""
    masked_N: np.ndarray
    weight: float


@torch.inference_mode()
def log_likelihoods(
    denoiser: Denoiser, continuations: Sequence[Continuation], options: LikelihoodOptions
) -> list[float]:
    """Bounds log p(continuation given context) from below, in nats.

    The bound is minus the expectation, over k uniform in 1..n and k of the n tokens masked, of
    n / k times the cross-entropy of the masked ones. Masks belong to the context, so answers to one
    question meet the same ones, and the noise of their comparison is smaller than of each.

    Args:
        denoiser: Of absorbing noise, in evaluation mode.
        continuations: Of at least one token each, in any order; results keep it.
        options: How many masks.

    Raises:
        ValueError: uniform noise, a mask token among the scored, or a sequence that is too long or
            begins where the denoiser cannot predict.

    Source: LLaDA, arXiv:2502.09992, eq. 6. Block-causal denoisers see earlier blocks clean.
    """
    for continuation in continuations:
        _check(continuation, denoiser)
    totals = [0.0] * len(continuations)
    order = sorted(range(len(continuations)), key=lambda row: -len(continuations[row].all_ids))
    states = (state for row in order for state in _states(continuations[row], row, options))
    num_states = 0
    while batch := list(itertools.islice(states, options.batch_size)):
        for state, cross_entropy in zip(
            batch, _cross_entropies(denoiser, continuations, batch), strict=True
        ):
            totals[state.row] -= state.weight * cross_entropy
        num_states += len(batch)
        logger.debug("scored num_states=%d", num_states)
    return totals


def are_greedy(
    denoiser: Denoiser, continuations: Sequence[Continuation], *, batch_size: int
) -> list[bool]:
    """Tells which continuations greedy sampling writes: one token a step, the surest first.

    A block-causal denoiser goes block by block, and where a text begins or ends within a block its
    steps are dealt evenly over the blocks all the same, so some write several tokens.

    Source: LLaDA's evaluation, `suffix_greedy_prediction`.
    """
    requests = [
        GenerationRequest(
            prompt_ids=continuation.context_ids,
            decoding=Decoding(
                max_new_tokens=len(continuation.ids),
                sampler=SamplerConfig(algorithm="low_confidence", num_steps=len(continuation.ids)),
                until=(),
            ),
        )
        for continuation in continuations
    ]
    answers = generate_ids(denoiser, requests, seed=0, batch_size=batch_size)
    pairs = zip(answers, continuations, strict=True)
    return [tuple(answer) == continuation.ids for answer, continuation in pairs]


def masks_of(num_tokens: int, *, num_masks: int, seed: int, key: int) -> WeightedMasks:
    """Lays out the masks of one text: all there are, if they are no more than num_masks.

    Else k is spread evenly over 1..n, each k-subset is drawn, and equal ones are counted together.
    The subset of a draw depends on seed, key, draw and k alone, and that of a longer text on the
    same numbers.
    """
    # Not 2**n - 1 itself, which for a long text is a number of thousands of digits.
    if num_tokens <= math.log2(num_masks + 1):
        rows = list(itertools.product((False, True), repeat=num_tokens))[1:]
        masked_RN = np.array(rows)
        weights_R = [1 / (k * math.comb(num_tokens, k)) for k in masked_RN.sum(1).tolist()]
        return WeightedMasks(masked_RN=masked_RN, weights_R=np.array(weights_R))
    offset = float(keyed_uniforms(seed=seed, sequence_id=key, step=0, length=1, stream="time")[0])
    fractions_R = (offset + np.arange(num_masks)) / num_masks
    masked_RN = np.zeros((num_masks, num_tokens), dtype=bool)
    for draw, fraction in enumerate(fractions_R):
        uniforms_N = keyed_uniforms(
            seed=seed, sequence_id=key, step=draw, length=num_tokens, stream="mask"
        )
        num_masked = math.ceil(fraction * num_tokens)
        masked_RN[draw, uniforms_N.argsort(kind="stable")[:num_masked]] = True
    masked_RN, counts_R = np.unique(masked_RN, axis=0, return_counts=True)
    weights_R = counts_R / num_masks * num_tokens / masked_RN.sum(1)
    return WeightedMasks(masked_RN=masked_RN, weights_R=weights_R)


def _states(continuation: Continuation, row: int, options: LikelihoodOptions) -> Iterator[_State]:
    masks = masks_of(
        len(continuation.ids),
        num_masks=options.num_masks,
        seed=options.seed,
        key=key_of(continuation.context_ids),
    )
    for masked_N, weight in zip(masks.masked_RN, masks.weights_R.tolist(), strict=True):
        yield _State(row, masked_N, weight)


def _cross_entropies(
    denoiser: Denoiser, continuations: Sequence[Continuation], states: Sequence[_State]
) -> list[float]:
    """Runs states as one batch: the cross-entropy of the masked tokens of each, in nats."""
    info, device = denoiser.info, denoiser.device
    rows = [continuations[state.row] for state in states]
    lengths_B = torch.tensor([len(row.all_ids) for row in rows])
    x0_BL = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.int64)
    masked_BL = torch.zeros_like(x0_BL, dtype=torch.bool)
    for index, (row, state) in enumerate(zip(rows, states, strict=True)):
        x0_BL[index, : len(row.all_ids)] = torch.tensor(row.all_ids)
        masked_BL[index, len(row.context_ids) : len(row.all_ids)] = torch.from_numpy(state.masked_N)
    num_masked_B = masked_BL.sum(1)
    times_B = num_masked_B / torch.tensor([len(row.ids) for row in rows])
    hidden_BLD = denoiser.hidden_states(
        x0_BL.masked_fill(masked_BL, info.mask_token_id).to(device),
        padding_mask(lengths_B.to(device), x0_BL.shape[1]),
        times_B=times_B.to(device),
        clean_ids_BL=x0_BL.to(device) if info.attention == "block_causal" else None,
    )
    ce_M = _cross_entropy(denoiser, hidden_BLD[masked_BL.to(device)], x0_BL[masked_BL].to(device))
    return [float(part.sum()) for part in ce_M.split(num_masked_B.tolist())]


def _cross_entropy(denoiser: Denoiser, hidden_MD: Tensor, labels_M: Tensor) -> Tensor:
    """Returns [M] float64 on the CPU."""
    parts = []
    start = 0
    for logits_MV in logits_chunks(denoiser, hidden_MD):
        labels_M1 = labels_M[start : start + len(logits_MV), None]
        parts.append(-logits_MV.log_softmax(-1).gather(-1, labels_M1)[:, 0].double().cpu())
        start += len(logits_MV)
    return torch.cat(parts)


def _check(continuation: Continuation, denoiser: Denoiser) -> None:
    info = denoiser.info
    if info.noise != "absorbing":
        raise ValueError(
            f"{info.name} has {info.noise} noise; this bound on a likelihood holds for masks only, "
            "so it can answer tasks that generate, and none that compare likelihoods"
        )
    if info.mask_token_id in continuation.ids:
        raise ValueError(
            f"a text to score holds the mask token of {info.name}, which has no likelihood"
        )
    if len(continuation.context_ids) < info.num_invalid_leading_positions:
        raise ValueError(
            f"{info.name} cannot predict the first position, and a text to score begins there; "
            "give add_bos_token=true, or a context"
        )
    if len(continuation.all_ids) > info.max_length:
        raise ValueError(
            f"{len(continuation.all_ids)} tokens to score, {info.name} takes at most "
            f"{info.max_length}"
        )
