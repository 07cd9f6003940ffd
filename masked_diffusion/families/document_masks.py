"""Several documents in one row: who sees whom, and where each position stands in its document."""

import torch
from torch import Tensor

PADDING = -1
"""Document id of positions behind the last document of a row."""


def same_document(document_ids_BL: Tensor) -> Tensor:
    """[B, 1, L, L] bool: query and key are of one document.

    Padding is a document of its own, so that no row of the softmax is empty.
    """
    return (document_ids_BL[:, :, None] == document_ids_BL[:, None, :])[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where allowed, else the least number.

    Float and not bool: transformers' eager attention adds a bool mask as 0 and 1, which hides
    nothing.
    """
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(dtype).min)


def positions_in_documents(document_ids_BL: Tensor) -> Tensor:
    """[B, L] int64: how far each position is from the first one of its document, in tokens."""
    places_BL = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device).expand_as(
        document_ids_BL
    )
    is_first_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    is_first_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    return places_BL - (places_BL * is_first_BL).cummax(dim=1).values
