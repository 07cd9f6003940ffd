"""A teacher inside the trainer's own process: the control that the remote one is compared with."""

from collections.abc import Sequence

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from protos import codec
from student_trainer import losses, wire
from student_trainer.targets import TargetCounters, to_loss_targets

_NO_LIMIT = 2**31 - 1


class InProcessTeacher:
    """A `TargetSource` that holds the teacher's weights and runs it, one sequence at a time."""

    sharded_head = None

    def __init__(self, denoiser: Denoiser) -> None:
        info = denoiser.info
        self._denoiser = denoiser
        self._head = losses.TeacherHead(denoiser.head_weight.detach())
        self.counters = TargetCounters()
        self.description = wire.TeacherDescription(
            name=info.name,
            family=info.family,
            revision="in process",
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            vocab_size=info.vocab_size,
            mask_token_id=info.mask_token_id,
            max_length=info.max_length,
            hidden_size=info.hidden_size,
            head_digest="",
            num_invalid_leading_positions=info.num_invalid_leading_positions,
            num_parameters=info.num_parameters,
            block_length=0,
            encodings=("hidden",),
            algorithms=(),
            max_sequences=_NO_LIMIT,
            max_tokens=_NO_LIMIT,
        )

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> list[codec.StepTargets]:
        """Hidden states at the masked positions of every state."""
        return [
            self._record(sequence_id, state_L)
            for sequence_id, state_L in zip(sequence_ids, states, strict=True)
        ]

    @torch.inference_mode()
    def _record(self, sequence_id: int, state_L: np.ndarray) -> codec.StepTargets:
        positions_M = np.flatnonzero(state_L == self._denoiser.info.mask_token_id)
        hidden_LD = self._denoiser.hidden_states(torch.from_numpy(state_L)[None])[0]
        values = codec.Values(dtype="f32", data=hidden_LD[positions_M].numpy())
        return codec.StepTargets(
            sequence_id=sequence_id,
            step=0,
            time=len(positions_M) / len(state_L),
            revision=self.description.revision,
            tokenizer_fingerprint=self.description.tokenizer_fingerprint,
            state=None,
            state_digest=codec.state_digest(state_L),
            unmask_steps=None,
            num_forwards=1,
            positions=positions_M.astype(np.int32),
            distribution=codec.Hidden(values=values),
        )

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        frozen: Sequence[np.ndarray],
        sequence_ids: Sequence[int],
        seed: int,
        steps: Sequence[int],
    ) -> list[codec.StepTargets]:
        """Not needed here."""
        raise NotImplementedError

    def to_loss_targets(self, records: Sequence[codec.StepTargets]) -> losses.Targets:
        """All positions of all records, in order."""
        return to_loss_targets(records, head=self._head, temperature=1.0)

    def close(self) -> None:
        """Nothing is in flight."""
