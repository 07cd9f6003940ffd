"""Trajectories, and how far each draw is from the chain that unmasks one position a step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import RowBatch, SamplerConfig, decide, get_sampler

_MAX_ROWS = 64


@dataclass(kw_only=True)
class Trace:
    """Of all rows together."""

    num_forwards: int = 0
    """Rows that took part in a forward, summed over the steps."""
    kl: list[float] = field(default_factory=list)
    """In nats, of each unmasked position: KL(drawn from, exact); 0 for the first of a step."""

    @property
    def num_positions(self) -> int:
        """That were unmasked."""
        return len(self.kl)


@torch.inference_mode()
def trace(denoiser: Denoiser, x_BL: Tensor, config: SamplerConfig, *, seed: int = 0) -> Trace:
    """Runs all steps of a sampler that never remasks; the surest position of a step comes first.

    Args:
        x_BL: [B, L] int64 start states, no padding; what is masked is generated.
    """
    sampler = get_sampler(config.algorithm)
    mask_token_id = denoiser.info.mask_token_id
    frozen_BL = x_BL != mask_token_id
    traced = Trace()
    for step in range(config.num_steps):
        rows = RowBatch(
            x_BL=x_BL,
            frozen_BL=frozen_BL,
            step_B=torch.full((len(x_BL),), step),
            num_steps_B=torch.full((len(x_BL),), config.num_steps),
            seeds=[seed] * len(x_BL),
            sequence_ids=list(range(len(x_BL))),
        )
        decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=mask_token_id)
        if not decided_BL.any():
            continue
        traced.num_forwards += int(decided_BL.any(-1).sum())
        logits_MV = denoiser.logits(denoiser(x_BL)[decided_BL])
        # A copy: a draw may write into what it is given.
        decisions = decide(
            sampler, rows, config, decided_BL=decided_BL, logits_chunks=[logits_MV.clone()]
        )
        next_BL = sampler.update(
            rows,
            config,
            mask_token_id=mask_token_id,
            decided_BL=decided_BL,
            tokens_BL=decisions.tokens_BL,
            confidence_BL=decisions.confidence_BL,
        )
        index_BL = torch.full(x_BL.shape, -1)
        index_BL[decided_BL] = torch.arange(len(logits_MV))
        states, places, drawn_from = [], [], []
        for row in range(len(x_BL)):
            opened = (next_BL[row] != x_BL[row]).nonzero()[:, 0]
            order = decisions.confidence_BL[row, opened].argsort(descending=True, stable=True)
            state_L = x_BL[row].clone()
            for rank, position in enumerate(opened[order].tolist()):
                if rank == 0:
                    traced.kl.append(0.0)
                else:
                    states.append(state_L.clone())
                    places.append(position)
                    drawn_from.append(logits_MV[index_BL[row, position]])
                state_L[position] = next_BL[row, position]
        if states:
            exact_MV = _logits_at(denoiser, torch.stack(states), torch.tensor(places))
            traced.kl += divergences(torch.stack(drawn_from), exact_MV).tolist()
        x_BL = next_BL
    return traced


def _logits_at(denoiser: Denoiser, x_ML: Tensor, positions_M: Tensor) -> Tensor:
    """[M, V] float32 of one position of each state."""
    parts = zip(x_ML.split(_MAX_ROWS), positions_M.split(_MAX_ROWS), strict=True)
    return torch.cat(
        [denoiser.logits(denoiser(part)[torch.arange(len(part)), at]) for part, at in parts]
    )


def divergences(logits_MV: Tensor, exact_MV: Tensor) -> Tensor:
    """[M] float64 nats: KL(softmax(logits), softmax(exact)), the mask id left out of both."""
    log_p_MV = logits_MV.double().log_softmax(-1)
    log_q_MV = exact_MV.double().log_softmax(-1)
    return (log_p_MV.exp() * (log_p_MV - log_q_MV)).sum(-1)
