"""Packing: several short sequences in one row of a forward, each seeing only itself.

A layout and nothing else: which sequences a step has, their draws, their targets and their loss are
those of padded rows, so a run may change between the two at a resume. Sums have another order, so
losses agree to rounding and not bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.families.document_masks import PADDING


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Sequences of a batch, one after the other in R rows."""

    input_ids_RL: Tensor
    """[R, L] int64."""
    document_ids_RL: Tensor
    """[R, L] int64: the sequence's index in the batch, PADDING behind the last of a row."""
    places_BL: Tensor
    """[B, L] int64: where in the flattened rows each token of the batch is; 0 for its padding."""


def first_fit_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    """Puts sequences into rows, the longest first, each into the first row with room for it.

    Args:
        lengths: tokens of each sequence, at most `capacity`.
        capacity: tokens of a row.

    Returns:
        The sequences' indices, row by row; at most 11/9 of the fewest rows possible plus 6/9.

    Source: first-fit decreasing; the bound is Dosa's (2007).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= length
    return rows


def pack(input_ids_BL: Tensor, lengths_B: Tensor, *, row_tokens: int) -> PackedRows:
    """Packs the sequences of a right-padded batch into rows of at most `row_tokens`.

    Padding is filled with id 0, which no token of the data sees.
    """
    lengths = lengths_B.tolist()
    rows = first_fit_rows(lengths, max(row_tokens, *lengths))
    width = max(sum(lengths[index] for index in row) for row in rows)
    input_ids_RL = torch.zeros(len(rows), width, dtype=torch.int64)
    document_ids_RL = torch.full((len(rows), width), PADDING)
    places_BL = torch.zeros_like(input_ids_BL)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            end = start + lengths[index]
            input_ids_RL[number, start:end] = input_ids_BL[index, : lengths[index]]
            document_ids_RL[number, start:end] = index
            first = number * width + start
            places_BL[index, : lengths[index]] = torch.arange(first, first + lengths[index])
            start = end
    return PackedRows(input_ids_RL, document_ids_RL, places_BL)


def check_packing(denoiser: Denoiser) -> None:
    """Refuses a student that cannot run several sequences in a row.

    Raises:
        ValueError: naming it and why.
    """
    if denoiser.packing_obstacle is not None:
        raise ValueError(
            f"data.packing is true, which the student {denoiser.info.name} cannot do: "
            f"{denoiser.packing_obstacle}; set data.packing=false"
        )
