"""One forward for rows of all requests, guided where they ask for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from masked_diffusion.guidance import guided_hidden_states, unconditional_states
from teacher_server.engine.model_runner import ModelRunner
from teacher_server.engine.sequence import Row


@torch.inference_mode()
def hidden_states_of(
    runner: ModelRunner, batch: Sequence[Row], *, times: Sequence[float]
) -> list[Tensor]:
    """Runs the rows, and beside them the unconditional states of those with guidance.

    Args:
        times: Of each row, in [0, 1].

    Returns:
        [L, D] of each row, aligned; of the guided teacher where there is guidance.
    """
    guided = [index for index, row in enumerate(batch) if row.guidance_scale]
    mask_token_id = runner.denoiser.info.mask_token_id
    free = [
        unconditional_states(batch[index].x_L, batch[index].frozen_L, mask_token_id=mask_token_id)
        for index in guided
    ]
    hidden = runner.hidden_states(
        [*(row.x_L for row in batch), *free], times=[*times, *(times[index] for index in guided)]
    )
    hidden, free_hidden = hidden[: len(batch)], hidden[len(batch) :]
    for index, free_LD in zip(guided, free_hidden, strict=True):
        hidden[index] = guided_hidden_states(
            hidden[index], free_LD, guidance_scale=batch[index].guidance_scale
        )
    return hidden
