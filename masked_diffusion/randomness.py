"""Random numbers that belong to a sequence, never to the batch it happens to share."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keyed_uniforms(
    *, seed: int, sequence_id: int, step: int, length: int, stream: str
) -> np.ndarray:
    """Draws one uniform per position from a generator keyed by who asks.

    Args:
        seed: Of the request; any integer.
        sequence_id: Of the sequence within the request; any integer.
        step: Denoising step, or optimizer step for the forward process.
        length: How many positions.
        stream: What the draw is for, so that two uses never share numbers: "token", "order",
            "time", "mask", or with uniform noise "noise" and "start".

    Returns:
        [length] float64 in the open interval (0, 1). The value at index p depends on p and the
        key alone, so a longer row starts with the same numbers.

    Source: Philox4x64 (Salmon et al., SC 2011), keyed by BLAKE2b of the arguments.
    """
    name = f"{seed}/{sequence_id}/{step}/{stream}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return bits_to_uniforms(np.random.Philox(key=key).random_raw(length))


def bits_to_uniforms(bits: np.ndarray) -> np.ndarray:
    """Turns uint64 words into float64 in the open (0, 1), from 2**-53 to 1 - 2**-53.

    Takes 52 bits and a half, which is exact; half a step above 53 bits would round up to 1.
    """
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def keyed_uniforms_batch(
    *,
    seeds: Sequence[int],
    sequence_ids: Sequence[int],
    steps: Sequence[int],
    length: int,
    stream: str,
) -> Tensor:
    """Stacks `keyed_uniforms` of several sequences.

    Returns:
        [B, length] float64 on the CPU; row b is what sequence b would get alone.
    """
    uniforms_BL = np.empty((len(seeds), length))
    keys = zip(seeds, sequence_ids, steps, strict=True)
    for row, (seed, sequence_id, step) in enumerate(keys):
        uniforms_BL[row] = keyed_uniforms(
            seed=seed, sequence_id=sequence_id, step=step, length=length, stream=stream
        )
    return torch.from_numpy(uniforms_BL)
