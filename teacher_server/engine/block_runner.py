"""Runs rows of a block-causal denoiser: scores by two streams, trajectories by cached blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.block_cache import BlockCaches, BlockRow
from masked_diffusion.families import Denoiser, padding_mask
from teacher_server.engine.sequence import Row


class BlockRunner:
    """A block-causal denoiser on its device. Used by the engine's thread alone."""

    def __init__(self, denoiser: Denoiser, *, max_cache_bytes: int) -> None:
        self._denoiser = denoiser
        self._caches = BlockCaches(denoiser, max_bytes=max_cache_bytes)

    @property
    def num_cache_bytes(self) -> int:
        """Bytes of keys and values that live rows hold."""
        return self._caches.num_bytes

    def drop(self, row: Row) -> None:
        """Frees what a row that ended has cached."""
        self._caches.drop(row)

    @torch.inference_mode()
    def hidden_states(self, rows: Sequence[Row], needed: Sequence[Tensor]) -> list[Tensor]:
        """Runs each row the way it asks for, one forward a kind.

        Args:
            rows: Scores and trajectories, in any order.
            needed: [L] bool of each row: where hidden states are wanted.

        Returns:
            [L, D] aligned hidden states of each row; undefined where not needed.
        """
        hidden: dict[int, Tensor] = {}
        kinds: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(_kind(row), []).append(index)
        for kind, places in kinds.items():
            chosen = [rows[place] for place in places]
            if kind == "trajectory":
                part_BLD = self._step([(rows[place], needed[place]) for place in places])
            else:
                part_BLD = self._score(chosen, two_streams=kind == "two_streams")
            for place, part_LD in zip(places, part_BLD, strict=True):
                hidden[place] = part_LD[: rows[place].length]
        return [hidden[place] for place in range(len(rows))]

    def _score(self, rows: Sequence[Row], *, two_streams: bool) -> Tensor:
        device = self._denoiser.device
        x_BL = pad_sequence([row.x_L for row in rows], batch_first=True).to(device)
        mask_BL = padding_mask(torch.tensor([row.length for row in rows]), x_BL.shape[1])
        clean_BL = None
        if two_streams:
            clean = [row.clean_x_L for row in rows if row.clean_x_L is not None]
            clean_BL = pad_sequence(clean, batch_first=True).to(device)
        return self._denoiser.hidden_states(
            x_BL, None if mask_BL is None else mask_BL.to(device), clean_ids_BL=clean_BL
        )

    def _step(self, rows: Sequence[tuple[Row, Tensor]]) -> Tensor:
        mask_token_id = self._denoiser.info.mask_token_id
        return self._caches.hidden_states(
            [
                BlockRow(
                    key=row,
                    ids_L=row.x_L,
                    open_L=(row.x_L == mask_token_id) & ~row.frozen_L,
                    needed_L=needed_L,
                )
                for row, needed_L in rows
            ]
        )


def _kind(row: Row) -> str:
    if row.request.kind == "trajectory":
        return "trajectory"
    return "state" if row.clean_x_L is None else "two_streams"
