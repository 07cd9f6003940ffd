"""Targets of the right shapes without a model: what an infinitely fast teacher would send."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from protos import codec

REVISION = "no-model"


@dataclass(frozen=True, kw_only=True)
class InstantTargets:
    """The same numbers in every process: a sequence with M masked positions gets the first M rows.

    Numpy only, so that a server made of it holds and computes nothing else.
    """

    vocab_size: int
    mask_token_id: int
    hidden_size: int
    """The teacher's width."""
    max_length: int
    top_k: int

    @cached_property
    def head(self) -> np.ndarray:
        """[V, D] float32."""
        return self._normal(self.vocab_size, self.hidden_size, seed=0) * self.hidden_size**-0.5

    @cached_property
    def hidden(self) -> np.ndarray:
        """[max_length, D] float32."""
        return self._normal(self.max_length, self.hidden_size, seed=1)

    @cached_property
    def _top_k(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, log-probabilities and the log of the rest, of every row, from the head's logits."""
        logits_LV = self.hidden @ self.head.T
        logits_LV[:, self.mask_token_id] = -np.inf
        log_probs_LV = logits_LV - np.logaddexp.reduce(logits_LV, axis=1, keepdims=True)
        ids_LK = np.sort(np.argsort(-log_probs_LV, axis=1)[:, : self.top_k], axis=1)
        log_probs_LK = np.take_along_axis(log_probs_LV, ids_LK, axis=1)
        tails_L = np.log1p(-np.exp(log_probs_LK).sum(axis=1))
        return ids_LK.astype("<i4"), log_probs_LK.astype("<f2"), tails_L.astype("<f4")

    def distribution(self, encoding: str, num_positions: int) -> codec.Distribution:
        """What is said at this many positions, at temperature 1."""
        if encoding == "hidden":
            values = codec.Values(dtype="f32", data=self.hidden[:num_positions])
            return codec.Hidden(values=values)
        ids_LK, log_probs_LK, tails_L = self._top_k
        return codec.TopK(
            row_offsets=np.arange(num_positions + 1, dtype="<i4") * self.top_k,
            token_ids=ids_LK[:num_positions].ravel(),
            log_probs=codec.Values(dtype="f16", data=log_probs_LK[:num_positions].ravel()),
            temperatures=np.ones(1, dtype="<f4"),
            log_normalizers=np.zeros((1, num_positions), dtype="<f4"),
            tail_log_masses=tails_L[None, :num_positions],
        )

    def record(self, encoding: str, *, sequence_id: int, state_L: np.ndarray) -> codec.StepTargets:
        """The targets of one state at its masked positions."""
        positions_M = np.flatnonzero(state_L == self.mask_token_id).astype("<i4")
        return codec.StepTargets(
            sequence_id=sequence_id,
            step=0,
            time=len(positions_M) / max(len(state_L), 1),
            revision=REVISION,
            tokenizer_fingerprint="",
            state=None,
            state_digest=codec.state_digest(state_L),
            unmask_steps=None,
            num_forwards=1,
            positions=positions_M,
            distribution=self.distribution(encoding, len(positions_M)),
        )

    def bytes_per_position(self, encoding: str) -> float:
        """On the wire, for the longest sequence with every position masked."""
        state_L = np.full(self.max_length, self.mask_token_id, dtype=np.int32)
        payload = codec.encode_targets(self.record(encoding, sequence_id=0, state_L=state_L))
        return len(payload) / self.max_length

    def _normal(self, *shape: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
