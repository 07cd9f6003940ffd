"""Content keys: what a stored unit is the answer to, as 16 bytes.

The key of a unit hashes everything that its targets are a function of and nothing else: equal
questions find equal answers, whoever asked first, and no other question ever does.
"""

import hashlib
from collections.abc import Sequence

import msgpack
import numpy as np

from student_trainer.wire import SamplerSpec

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)
"""Stands for an example that is not named."""


def score_key(state: np.ndarray, *, revision: str) -> bytes:
    """Key of one forward of a state, [L] ids; any run and any sequence may share it."""
    return _key("score", revision, _ids(state))


def trajectory_key(
    start: np.ndarray,
    *,
    frozen: np.ndarray,
    sequence_id: int,
    seed: int,
    steps: Sequence[int],
    sampler: SamplerSpec,
    revision: str,
) -> bytes:
    """Key of the targets of some steps of a trajectory.

    Args:
        start: [L] ids of the start state.
        frozen: [L] bool, positions that are never touched.
        sequence_id: it and the seed key every draw.
        steps: the steps whose targets are asked for.
    """
    message = sampler.to_message().SerializeToString(deterministic=True)
    open_positions = np.asarray(frozen, dtype=bool).tobytes()
    asked = [int(step) for step in steps]
    return _key("sample", revision, _ids(start), open_positions, sequence_id, seed, asked, message)


def example_key(token_ids: np.ndarray, *, prompt_length: int) -> bytes:
    """Names a clean sequence of the data, [L] ids with a prompt."""
    return _key("example", "", _ids(token_ids), int(prompt_length))


def _ids(token_ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(token_ids, dtype="<i4").tobytes()


def _key(*parts: object) -> bytes:
    # msgpack writes the length of every part: no two lists of parts are the same bytes.
    return hashlib.blake2b(msgpack.packb(parts), digest_size=KEY_BYTES).digest()
