"""The head on numbers of positions that never show in a position's logits."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from masked_diffusion.families import Denoiser

logger = logging.getLogger(__name__)

NUM_POSITIONS = 8
"""What the head runs on where there is nothing better; fewer positions are filled up to it."""
_MAX_POSITIONS = 512


class FixedHead:
    """Cuts positions into chunks of tested sizes; one thread's at a time."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Makes one of the smallest chunks until `prove`."""
        self._denoiser = denoiser
        self._sizes = [NUM_POSITIONS]

    @torch.inference_mode()
    def prove(self, *, max_positions: int) -> None:
        """Tests which chunks give every position the bits that the smallest ones give it.

        Args:
            max_positions: Of a chunk.
        """
        weight_VD = self._denoiser.head_weight
        generator = torch.Generator().manual_seed(0)
        num_positions = max(NUM_POSITIONS, min(max_positions, _MAX_POSITIONS))
        hidden_MD = torch.randn(num_positions, weight_VD.shape[1], generator=generator)
        hidden_MD = hidden_MD.to(weight_VD.device, weight_VD.dtype)
        first_MD = hidden_MD[:NUM_POSITIONS]
        logits_MV = self._denoiser.logits(first_MD)
        # Other places, other neighbours.
        moved_MV = self._denoiser.logits(first_MD.roll(1, 0)).roll(-1, 0)
        if not torch.equal(logits_MV, moved_MV):
            logger.warning("position_dependent: the head runs on one position at a time")
            self._sizes = [1]
            return
        size = 2 * NUM_POSITIONS
        while size <= num_positions:
            small = [self._denoiser.logits(part) for part in hidden_MD[:size].split(NUM_POSITIONS)]
            if not torch.equal(self._denoiser.logits(hidden_MD[:size]), torch.cat(small)):
                logger.warning("position_dependent num_positions=%d: smaller chunks", size)
                break
            self._sizes.append(size)
            size *= 2

    def logits_chunks(self, hidden_MD: Tensor, *, suppress_mask_token: bool) -> Iterator[Tensor]:
        """As `ModelRunner.logits_chunks`."""
        left_MD = hidden_MD
        while len(left_MD):
            size = max((size for size in self._sizes if size <= len(left_MD)), default=None)
            size = size or self._sizes[0]
            chunk, left_MD = left_MD[:size], left_MD[size:]
            filled = pad(chunk, (0, 0, 0, size - len(chunk))) if len(chunk) < size else chunk
            logits = self._denoiser.logits(filled, suppress_mask_token=suppress_mask_token)
            yield logits[: len(chunk)]
