"""What a request to a teacher of uniform noise must say besides, and how its trajectories begin."""

from collections.abc import Sequence

import numpy as np
import torch

from masked_diffusion import uniform_noise
from masked_diffusion.families import DenoiserInfo
from protos import teacher_pb2 as pb
from teacher_server.refusals import invalid


def check_score(
    states: Sequence[np.ndarray], chosen: Sequence[np.ndarray] | None, info: DenoiserInfo
) -> None:
    """Refuses states that hold a mask, and a request that does not name its positions."""
    if chosen is None and states:
        raise invalid(
            "positions",
            "must be given: this teacher's noise is uniform, so a state does not show where it is",
        )
    for index, ids in enumerate(states):
        _check_no_mask(ids == info.mask_token_id, index, info, field="states.token_ids")


def noisy_starts(
    message: pb.SampleTrajectoriesRequest,
    starts: Sequence[np.ndarray],
    frozen: Sequence[np.ndarray],
    info: DenoiserInfo,
) -> list[np.ndarray]:
    """The states that trajectories begin from: pure noise at open positions that hold the mask.

    Open positions with other ids stay: a client may begin from a noisy state of its own.
    """
    noisy = []
    for index, (ids, frozen_L) in enumerate(zip(starts, frozen, strict=True)):
        _check_no_mask(
            (ids == info.mask_token_id) & frozen_L, index, info, field="start_states.token_ids"
        )
        x_BL = uniform_noise.start_states(
            torch.from_numpy(ids.astype(np.int64))[None],
            frozen_BL=torch.from_numpy(frozen_L)[None],
            info=info,
            seeds=[message.seeds[index]],
            sequence_ids=[message.start_states.sequence_ids[index]],
        )
        noisy.append(x_BL[0].numpy())
    return noisy


def _check_no_mask(masked_L: np.ndarray, index: int, info: DenoiserInfo, *, field: str) -> None:
    if masked_L.any():
        raise invalid(
            field,
            f"has the mask id {info.mask_token_id} at position {masked_L.argmax()} of sequence "
            f"{index}, which a teacher of uniform noise never sees; give a token there, or in a "
            "start state leave it open",
        )
