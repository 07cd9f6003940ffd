"""Masked states of known text, always the same ones: what two versions of a model are compared on.

The tokenizer's own passages (`encoded_passages`), or random ids where it has no words for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families import Denoiser, padding_mask
from masked_diffusion.families.info import DenoiserInfo
from masked_diffusion.families.probe_passages import encoded_passages
from masked_diffusion.randomness import keyed_uniforms

WINDOW_LENGTH = 48
"""Tokens of a window; passages are cut into disjoint windows."""
MAX_PASSAGE_LENGTH = 512
MIN_WINDOW_LENGTH = 8
NUM_RANDOM_WINDOWS = 8
TIMES = (0.15, 0.35, 0.55, 0.75, 0.95)
"""Each window is masked at each of them; a token is masked with this probability."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeStates:
    """Masked states, right padded; those of one window share their clean ids."""

    ids_BL: Tensor
    """[B, L] int64, the mask id (with uniform noise: any id) at masked positions."""
    masked_BL: Tensor
    """[B, L] bool."""
    lengths_B: Tensor
    """[B] int64."""
    times_B: Tensor
    """[B] float32."""
    windows_B: Tensor
    """[B] int64, the window of each state: states of one window are not independent."""
    source: str
    """What the windows are cut from."""


def make_probe_states(denoiser: Denoiser, *, seed: int) -> ProbeStates:
    """Masks every window at every time; every state has a masked position."""
    windows, source = _windows(denoiser, seed=seed)
    rows, masks, times, owners = [], [], [], []
    for index, clean_L in enumerate(windows):
        for step, time in enumerate(TIMES):
            masked_L = _masked(denoiser.info, clean_L, time, seed=seed, window=index, step=step)
            noise_L = _noise(denoiser.info, len(clean_L), seed=seed, window=index, step=step)
            rows.append(torch.where(masked_L, noise_L, clean_L))
            masks.append(masked_L)
            times.append(time)
            owners.append(index)
    return ProbeStates(
        ids_BL=pad_sequence(rows, batch_first=True),
        masked_BL=pad_sequence(masks, batch_first=True),
        lengths_B=torch.tensor([len(row) for row in rows]),
        times_B=torch.tensor(times),
        windows_B=torch.tensor(owners),
        source=source,
    )


@torch.no_grad()
def masked_hidden_states(denoiser: Denoiser, states: ProbeStates, *, batch_size: int = 8) -> Tensor:
    """Runs the body over all states: [M, D], row-major over masked positions."""
    hidden = []
    for rows in torch.arange(len(states.ids_BL)).split(batch_size):
        lengths_B = states.lengths_B[rows]
        length = int(lengths_B.max())
        mask_BL = padding_mask(lengths_B, length)
        hidden_BLD = denoiser(
            states.ids_BL[rows, :length].to(denoiser.device),
            None if mask_BL is None else mask_BL.to(denoiser.device),
            times_B=states.times_B[rows].to(denoiser.device),
        )
        hidden.append(hidden_BLD[states.masked_BL[rows, :length].to(denoiser.device)])
    return torch.cat(hidden)


def _windows(denoiser: Denoiser, *, seed: int) -> tuple[list[Tensor], str]:
    info = denoiser.info
    length = min(WINDOW_LENGTH, info.max_length)
    passages: dict[str, Tensor] = {}
    if denoiser.tokenizer is not None:
        passages = encoded_passages(denoiser.tokenizer, max_length=MAX_PASSAGE_LENGTH)
    if passages:
        windows = [window for ids in passages.values() for window in ids.split(length)]
        # A shorter rest has hardly any context; a model of very short sequences has no other.
        enough = min(MIN_WINDOW_LENGTH, length)
        return [w for w in windows if len(w) >= enough], ", ".join(passages)
    ordinary = _ordinary_ids(info)
    draws = (
        keyed_uniforms(seed=seed, sequence_id=i, step=0, length=length, stream="token")
        for i in range(NUM_RANDOM_WINDOWS)
    )
    return [_pick(ordinary, draw) for draw in draws], "random ids"


def _masked(
    info: DenoiserInfo, clean_L: Tensor, time: float, *, seed: int, window: int, step: int
) -> Tensor:
    uniforms = keyed_uniforms(
        seed=seed, sequence_id=window, step=step, length=len(clean_L), stream="mask"
    )
    # No prediction was trained for the first positions of a shifted checkpoint.
    uniforms[: info.num_invalid_leading_positions] = 1.0
    threshold = max(time, float(uniforms.min()))
    return torch.from_numpy(uniforms <= threshold)


def _noise(info: DenoiserInfo, length: int, *, seed: int, window: int, step: int) -> Tensor:
    if info.noise == "absorbing":
        return torch.full((length,), info.mask_token_id)
    uniforms = keyed_uniforms(
        seed=seed, sequence_id=window, step=step, length=length, stream="token"
    )
    return _pick(_ordinary_ids(info), uniforms)


def _ordinary_ids(info: DenoiserInfo) -> Sequence[int]:
    special = set(info.special_token_ids)
    return [token_id for token_id in range(info.vocab_size) if token_id not in special]


def _pick(ids: Sequence[int], uniforms: np.ndarray) -> Tensor:
    return torch.tensor(ids)[torch.from_numpy((uniforms * len(ids)).astype(np.int64))]
