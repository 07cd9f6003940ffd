"""Runs the denoiser: rows of any length in, aligned hidden states out, the head where needed."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families import EXCLUDED_LOGIT, Denoiser, padding_mask
from teacher_server.engine.compiled_body import CompiledBody
from teacher_server.engine.device_policy import to_device
from teacher_server.engine.fixed_head import FixedHead
from teacher_server.engine.fixed_shapes import FixedShapes

PROOF_SECONDS = 10.0
"""What the start may take for testing fixed shapes, the head's apart."""

_FEW_POSITIONS = 128
_CACHED_ELEMENTS = 2**21


def chunk_positions(vocab_size: int, *, max_elements: int) -> int:
    """Positions that the head is applied to at a time.

    Logits that stay in the cache until they are drawn from are fastest, 2**21 of them on the CPU
    where it was measured; but each chunk reads the whole head, which wants many positions.
    """
    preferred = max(_FEW_POSITIONS, _CACHED_ELEMENTS // vocab_size)
    return max(1, min(preferred, max_elements // vocab_size))


class DenoiserLostError(RuntimeError):
    """No forward can succeed any more, whatever its rows are: the engine dies of it."""


class ModelRunner:
    """The denoiser on its device. Used by the engine's thread alone."""

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        max_head_elements: int,
        max_fixed_tokens: int | None = None,
        pad_rows: bool = False,
        compiles: bool = False,
    ) -> None:
        """Makes a runner.

        Args:
            max_fixed_tokens: Of a forward, with shapes that never depend on load; None = without.
            pad_rows: Never packs rows.
            compiles: Runs padded rows through `torch.compile`; not with fixed shapes.

        Raises:
            ValueError: it cannot be compiled here.
        """
        self.denoiser = denoiser
        self.fixed = (
            None if max_fixed_tokens is None else FixedShapes(denoiser, max_tokens=max_fixed_tokens)
        )
        self._fixed_head = None if max_fixed_tokens is None else FixedHead(denoiser)
        pad_rows = pad_rows or compiles
        self.packs_rows = self.fixed is None and not pad_rows and denoiser.enable_ragged()
        """Whether rows of any length share a forward without padding."""
        self._max_head_elements = max_head_elements
        self._body: CompiledBody | Callable[..., Tensor] = denoiser.hidden_states
        if compiles:
            self._body = CompiledBody(denoiser)
            self._body.warm_up()

    @property
    def _device(self) -> torch.device:
        return self.denoiser.head_weight.device

    @property
    def _max_head_positions(self) -> int:
        return max(1, self._max_head_elements // self.denoiser.info.vocab_size)

    @torch.inference_mode()
    def hidden_states(self, rows: Sequence[Tensor], *, times: Sequence[float]) -> list[Tensor]:
        """One forward of rows [L_b] of ids; [L_b, D] of each, aligned.

        Args:
            times: of each row, in [0, 1]; looked at where the denoiser uses time.
        """
        if self.fixed is not None:
            return self.fixed.hidden_states(rows, times=times)
        if self.packs_rows:
            return self._packed(rows)
        # Pad ids are never attended to; any valid id serves.
        x_BL = pad_sequence(list(rows), batch_first=True)
        mask_BL = padding_mask(torch.tensor([len(row) for row in rows]), x_BL.shape[1])
        hidden_BLD = self._body(
            to_device(x_BL, self._device),
            None if mask_BL is None else to_device(mask_BL, self._device),
            times_B=to_device(torch.tensor(times, dtype=torch.float32), self._device),
        )
        return [hidden_LD[: len(row)] for row, hidden_LD in zip(rows, hidden_BLD, strict=True)]

    def _packed(self, rows: Sequence[Tensor]) -> list[Tensor]:
        # By length: neighbours of one length are attended together.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        lengths = [len(rows[index]) for index in order]
        ids_T = to_device(torch.cat([rows[index] for index in order]), self._device)
        parts = self.denoiser.ragged_hidden_states(ids_T, lengths).split(lengths)
        hidden = dict(zip(order, parts, strict=True))
        return [hidden[index] for index in range(len(rows))]

    @torch.inference_mode()
    def logits_chunks(
        self, hidden_MD: Tensor, *, suppress_mask_token: bool = True
    ) -> Iterator[Tensor]:
        """Logits of positions, [chunk, V] float32 at a time, so that [M, V] is never whole."""
        if self._fixed_head is not None:
            yield from self._fixed_head.logits_chunks(
                hidden_MD, suppress_mask_token=suppress_mask_token
            )
            return
        rows = chunk_positions(self.denoiser.info.vocab_size, max_elements=self._max_head_elements)
        for chunk in hidden_MD.split(rows):
            yield self.denoiser.logits(chunk, suppress_mask_token=suppress_mask_token)

    def without_mask_token(self, logits_MV: Tensor) -> Tensor:
        """A copy in which the mask id is excluded."""
        excluded_MV = logits_MV.clone()
        excluded_MV[:, self.denoiser.info.mask_token_id] = EXCLUDED_LOGIT
        return excluded_MV

    def prove_shapes(self) -> None:
        """Tests fixed shapes, before any row runs; nothing without them."""
        if self._fixed_head is not None:
            self._fixed_head.prove(max_positions=self._max_head_positions)
        # Block-causal rows run one at a time.
        if self.fixed is not None and self.denoiser.info.attention != "block_causal":
            self.fixed.prove(seconds=PROOF_SECONDS)

    def prove(self) -> None:
        """Runs the smallest real forward; raises whatever it raises."""
        info = self.denoiser.info
        ids = torch.full((min(4, info.max_length),), info.mask_token_id)
        (hidden_LD,) = self.denoiser.hidden_states(
            ids[None].to(self._device), times_B=torch.ones(1, device=self._device)
        )
        if not torch.isfinite(hidden_LD).all():
            raise FloatingPointError("the denoiser's forward is not finite")
