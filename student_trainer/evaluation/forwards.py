"""Forwards over fixed states, in evaluation mode and in bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from masked_diffusion.families import Denoiser, padding_mask
from student_trainer.evaluation.states import EvaluationStates

MAX_CHUNK_ELEMENTS = 4_194_304  # 16 MiB of float32 logits at a time


def masked_hidden(
    denoiser: Denoiser, states: EvaluationStates, batch_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields, batch by batch, its rows, where they are masked, and the hidden states there."""
    device = denoiser.device
    for start in range(0, len(states.t_B), batch_size):
        rows = slice(start, start + batch_size)
        lengths_B = states.lengths_B[rows].to(device)
        width = int(lengths_B.max())
        masked_BL = states.masked_BL[rows, :width].to(device)
        # Block diffusion is trained and bounded with the blocks before a position's own clean.
        is_blocked = denoiser.info.attention == "block_causal"
        hidden_BLD = denoiser.hidden_states(
            states.xt_BL[rows, :width].to(device),
            padding_mask(lengths_B, width),
            clean_ids_BL=states.x0_BL[rows, :width].to(device) if is_blocked else None,
            times_B=states.t_B[rows].to(device),
        )
        yield rows, masked_BL, hidden_BLD[masked_BL]


def vocabulary_chunks(num_positions: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, MAX_CHUNK_ELEMENTS // vocab_size)
    return (slice(start, start + size) for start in range(0, num_positions, size))


@contextmanager
def evaluating(denoiser: Denoiser) -> Iterator[None]:
    """Holds a denoiser in evaluation mode and gives it back as it was."""
    was_training = denoiser.training
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train(was_training)
