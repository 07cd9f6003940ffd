"""One trajectory, one row at a time: what the server must come to whatever else it batches."""

from dataclasses import dataclass, field

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import RowBatch, SamplerConfig, decide, get_sampler
from teacher_server.engine.sequence import Capture


@dataclass(kw_only=True)
class CollectedStep:
    """What a collected step must say."""

    step: int
    time: float
    state: np.ndarray
    unmask_steps: np.ndarray
    num_forwards: int
    positions: np.ndarray
    hidden_MD: np.ndarray


@dataclass(kw_only=True)
class Trajectory:
    """What a trajectory must come to."""

    state: np.ndarray
    unmask_steps: np.ndarray
    num_forwards: int = 0
    num_steps: int = 0
    collected: list[CollectedStep] = field(default_factory=list)


@torch.no_grad()
def sample_alone(
    denoiser: Denoiser,
    start: np.ndarray,
    *,
    frozen: np.ndarray,
    config: SamplerConfig,
    seed: int,
    sequence_id: int,
    capture: Capture,
) -> Trajectory:
    """Runs one sequence without any batching, asking the sampler at every step."""
    sampler, mask_token_id = get_sampler(config.algorithm), denoiser.info.mask_token_id
    x_BL = torch.from_numpy(start.astype(np.int64))[None]
    frozen_BL = torch.from_numpy(frozen)[None]
    result = Trajectory(state=start, unmask_steps=np.full(len(start), -1))
    is_new_state = True
    for step in range(config.num_steps):
        open_BL = (x_BL == mask_token_id) & ~frozen_BL
        if not open_BL.any():
            break
        result.num_steps = step + 1
        rows = RowBatch(
            x_BL=x_BL,
            frozen_BL=frozen_BL,
            step_B=torch.tensor([step]),
            num_steps_B=torch.tensor([config.num_steps]),
            seeds=[seed],
            sequence_ids=[sequence_id],
        )
        decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=mask_token_id)
        collects = is_new_state and capture.covers(step)
        if not decided_BL.any() and not collects:
            continue
        hidden_BLD = denoiser.hidden_states(x_BL)
        result.num_forwards += 1
        if config.guidance_scale > 0:
            free_BLD = denoiser.hidden_states(x_BL.masked_fill(frozen_BL, mask_token_id))
            hidden_BLD = free_BLD + (config.guidance_scale + 1) * (hidden_BLD - free_BLD)
            result.num_forwards += 1
        if collects:
            is_new_state = False
            result.collected.append(
                CollectedStep(
                    step=step,
                    time=float(sampler.times(config)[step]),
                    state=x_BL[0].numpy(),
                    unmask_steps=result.unmask_steps.copy(),
                    num_forwards=result.num_forwards,
                    positions=np.flatnonzero(open_BL[0].numpy()),
                    hidden_MD=hidden_BLD[open_BL].float().numpy(),
                )
            )
        if not decided_BL.any():
            continue
        decisions = decide(
            sampler,
            rows,
            config,
            decided_BL=decided_BL,
            logits_chunks=[
                denoiser.logits(
                    hidden_BLD[decided_BL], suppress_mask_token=config.suppress_mask_token
                )
            ],
        )
        next_BL = sampler.update(
            rows,
            config,
            mask_token_id=mask_token_id,
            decided_BL=decided_BL,
            tokens_BL=decisions.tokens_BL,
            confidence_BL=decisions.confidence_BL,
        )
        changed_L = (next_BL != x_BL)[0].numpy()
        is_mask_L = (next_BL == mask_token_id)[0].numpy()
        result.unmask_steps[changed_L & ~is_mask_L] = step
        result.unmask_steps[changed_L & is_mask_L] = -1
        is_new_state = is_new_state or bool(changed_L.any())
        x_BL = next_BL
    result.state = x_BL[0].numpy()
    return result
