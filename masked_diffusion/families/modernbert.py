"""ModernBERT as a denoiser, with transformers' own classes."""

from typing import cast

import torch
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedConfig

from masked_diffusion.families import document_masks
from masked_diffusion.families.encoder import Encoder


class ModernBert(Encoder):
    """A ModernBERT with its masked-LM head.

    Two of three layers see local_attention / 2 positions (64 as published) to each side; every
    third one, the first of all among them, sees the whole sequence, so every position hears of
    every other. The start-up self-test is shorter than the window: it proves that attention looks
    ahead, and cannot tell a local layer from a global one.
    """

    family = "modernbert"
    config_class = ModernBertConfig
    model_class = ModernBertForMaskedLM

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """See `Encoder.prepare_config`.

        Raises:
            ValueError: no layer sees the whole sequence.
        """
        super().prepare_config(config)
        layer_types = cast(ModernBertConfig, config).layer_types or []
        if "full_attention" not in layer_types:
            raise ValueError(
                f"layer_types must name full_attention at least once, got {layer_types}: a "
                "denoiser attends to the whole sequence, if not in every layer"
            )

    def packed_mask(self, document_ids_BL: Tensor) -> Tensor | dict[str, Tensor]:
        """Local layers see their window of the document only."""
        places_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
        distances_LL = (places_L[:, None] - places_L[None]).abs()
        allowed = document_masks.same_document(document_ids_BL)
        window = cast(ModernBertConfig, self.model.config).sliding_window
        near = allowed & (distances_LL <= window)
        dtype = self.model.dtype
        return {
            "full_attention": document_masks.additive(allowed, dtype),
            "sliding_attention": document_masks.additive(near, dtype),
        }

    def transform(self, hidden_BLD: Tensor) -> Tensor:
        return cast(Tensor, cast(ModernBertForMaskedLM, self.model).head(hidden_BLD))
