"""Content keys: what a stored unit is the answer to, as 16 bytes.

The key of a unit hashes everything that its targets are a function of and nothing else: equal
questions find equal answers, whoever asked first, and no other question ever does.
"""

import hashlib
from collections.abc import Sequence

import msgpack
import numpy as np

from student_trainer.wire import SamplerSpec, TeacherDescription

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)
"""Stands for an example that is not named."""


def score_key(
    state: np.ndarray,
    *,
    revision: str,
    clean: np.ndarray | None = None,
    time: float | None = None,
    positions: np.ndarray | None = None,
) -> bytes:
    """Key of one forward of a state, [L] ids; any run and any sequence may share it.

    Args:
        clean: [L] ids without noise, where the teacher sees them.
        time: of the state, where it is told.
        positions: [M] that carry targets, where they are not the masked ones.
    """
    return _key(
        "score",
        revision,
        _ids(state),
        None if clean is None else _ids(clean),
        None if time is None else float(time),
        None if positions is None else _ids(positions),
    )


def score_keys(
    states: Sequence[np.ndarray],
    *,
    teacher: TeacherDescription,
    clean: Sequence[np.ndarray] | None,
    times: Sequence[float] | None,
    positions: Sequence[np.ndarray] | None,
) -> list[bytes]:
    """Keys of a call to score; clean ids are left out where the teacher is not shown them."""
    rows = range(len(states))
    shown = clean if teacher.is_block_causal else None
    return [
        score_key(
            states[row],
            revision=teacher.revision,
            clean=None if shown is None else shown[row],
            time=None if times is None else times[row],
            positions=None if positions is None else positions[row],
        )
        for row in rows
    ]


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
