"""Runs the denoiser: rows of any length in, aligned hidden states out, the head where needed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families import Denoiser, padding_mask


class DenoiserLostError(RuntimeError):
    """No forward can succeed any more, whatever its rows are: the engine dies of it."""


class ModelRunner:
    """The denoiser on its device. Used by the engine's thread alone."""

    def __init__(self, denoiser: Denoiser, *, max_head_elements: int) -> None:
        self.denoiser = denoiser
        self._max_head_elements = max_head_elements

    @property
    def _device(self) -> torch.device:
        return self.denoiser.head_weight.device

    @torch.inference_mode()
    def hidden_states(self, rows: Sequence[Tensor], *, times: Sequence[float]) -> Tensor:
        """One forward of rows [L_b] of ids; [B, longest, D], aligned, padding rows undefined.

        Args:
            times: of each row, in [0, 1]; looked at where the denoiser uses time.
        """
        # Pad ids are never attended to; any valid id serves.
        x_BL = pad_sequence(list(rows), batch_first=True)
        mask_BL = padding_mask(torch.tensor([len(row) for row in rows]), x_BL.shape[1])
        return self.denoiser.hidden_states(
            x_BL.to(self._device),
            None if mask_BL is None else mask_BL.to(self._device),
            times_B=torch.tensor(times, dtype=torch.float32, device=self._device),
        )

    @torch.inference_mode()
    def logits_chunks(
        self, hidden_MD: Tensor, *, suppress_mask_token: bool = True
    ) -> Iterator[Tensor]:
        """Logits of positions, [chunk, V] float32 at a time, so that [M, V] is never whole."""
        rows = max(1, self._max_head_elements // self.denoiser.info.vocab_size)
        for chunk in hidden_MD.split(rows):
            yield self.denoiser.logits(chunk, suppress_mask_token=suppress_mask_token)

    def prove(self) -> None:
        """Runs the smallest real forward; raises whatever it raises."""
        info = self.denoiser.info
        ids = torch.full((min(4, info.max_length),), info.mask_token_id)
        hidden = self.hidden_states([ids], times=[1.0])
        if not torch.isfinite(hidden).all():
            raise FloatingPointError("the denoiser's forward is not finite")
