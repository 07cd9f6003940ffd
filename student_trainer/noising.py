"""The forward process of a run: which positions of a sequence get a loss, and what they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion import forward_process
from masked_diffusion.families import DenoiserInfo
from masked_diffusion.noise import FORWARD_PROCESSES
from masked_diffusion.randomness import keyed_uniforms_batch
from student_trainer.batches import SequenceBatch


@dataclass(frozen=True, kw_only=True)
class Noising:
    """Makes clean sequences noisy; every draw is a function of the seed and the sequence id.

    Sequence ids number the samples of a run: those of optimizer step s are
    s * global_batch_size and on, whatever rank, worker or micro-batch makes them noisy. The times
    of one step are stratified over its global batch.
    """

    info: DenoiserInfo
    global_batch_size: int
    seed: int = 0
    t_min: float = 1 / 500
    """Times are clamped to [t_min, t_max]."""
    t_max: float = 1 - 1 / 500

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1, got {self.global_batch_size}")

    def noise(
        self, batch: SequenceBatch, sequence_ids: Sequence[int], *, maskable_BL: Tensor
    ) -> forward_process.NoisedBatch:
        """Draws a time for each sequence and its state at that time.

        Args:
            batch: B sequences.
            sequence_ids: their B numbers.
            maskable_BL: where noise may be, from `maskable`.
        """
        places = [divmod(sequence_id, self.global_batch_size) for sequence_id in sequence_ids]

        def draw(stream: str) -> Tensor:
            return keyed_uniforms_batch(
                seeds=[self.seed] * len(sequence_ids),
                sequence_ids=sequence_ids,
                steps=[step for step, _ in places],
                length=batch.input_ids_BL.shape[1],
                stream=stream,
            )

        return FORWARD_PROCESSES[self.info.noise](
            batch.input_ids_BL,
            info=self.info,
            noisable_BL=maskable_BL,
            t_B=self._times(sequence_ids, places),
            lengths_B=batch.lengths_B,
            draw=draw,
        )

    def _times(self, sequence_ids: Sequence[int], places: Sequence[tuple[int, int]]) -> Tensor:
        """[B] float32; a row at a time, since neighbours may be of other steps."""
        rows = [
            forward_process.sample_times(
                [sequence_id],
                seed=self.seed,
                epoch_step=step,
                t_min=self.t_min,
                t_max=self.t_max,
                offset=place,
                total=self.global_batch_size,
            )
            for sequence_id, (step, place) in zip(sequence_ids, places, strict=True)
        ]
        return torch.cat(rows)


def maskable(batch: SequenceBatch, info: DenoiserInfo) -> Tensor:
    """[B, L] bool: neither prompt, padding, special token nor a position without prediction."""
    return forward_process.maskable_positions(
        batch.input_ids_BL,
        lengths_B=batch.lengths_B,
        prompt_lengths_B=batch.prompt_lengths_B,
        special_token_ids=info.special_token_ids,
        num_invalid_leading_positions=info.num_invalid_leading_positions,
    )
