"""Masked-LM encoders as denoisers: what BERT and its descendants have in common."""

from typing import ClassVar, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig

from masked_diffusion.families import document_masks
from masked_diffusion.families.base import Denoiser
from masked_diffusion.families.info import Alignment


class Encoder(Denoiser):
    """A transformers model for masked LM; raw row p predicts token p.

    Its head is a transform (dense, activation, norm), which belongs to the body here, and a decoder
    with a bias, whose matrix is as a rule the embedding's.

    Trained at one share of masked tokens (15 %, or 30 %) instead of all of them, it is a denoiser
    all the same: at any state the optimum is the distribution of a hidden token given the visible
    ones, and the time is no part of it (Ou et al., arXiv:2406.03736). How well it does with more
    masks than it was trained on is a matter of the checkpoint.
    """

    default_alignment: ClassVar[Alignment] = "aligned"

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """States what an encoder is anyway, for readers of the saved config.

        Raises:
            ValueError: is_decoder, whose layers were trained to look back only.
        """
        if getattr(config, "is_decoder", False):
            raise ValueError(
                "is_decoder must be false, got true: layers that were trained to look back only "
                "are no masked-LM encoder"
            )
        config.is_causal = False

    @property
    def head_weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self._decoder().weight)

    @property
    def head_bias(self) -> Tensor | None:
        return self._decoder().bias

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        output = self.model.base_model(input_ids=input_ids_BL, attention_mask=attention_mask_BL)
        return self.transform(cast(Tensor, output.last_hidden_state))

    @property
    def packing_obstacle(self) -> str | None:
        return None

    def raw_packed_hidden_states(self, input_ids_BL: Tensor, document_ids_BL: Tensor) -> Tensor:
        positions_BL = document_masks.positions_in_documents(document_ids_BL)
        output = self.model.base_model(
            input_ids=input_ids_BL,
            attention_mask=self.packed_mask(document_ids_BL),
            position_ids=positions_BL + self.first_position,
        )
        return self.transform(cast(Tensor, output.last_hidden_state))

    @property
    def first_position(self) -> int:
        """Row of the table of positions for the first token."""
        return 0

    def packed_mask(self, document_ids_BL: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask of each kind of layer, [B, 1, L, L]; one tensor where all are of one kind."""
        allowed = document_masks.same_document(document_ids_BL)
        return document_masks.additive(allowed, self.model.dtype)

    def transform(self, hidden_BLD: Tensor) -> Tensor:
        """What the checkpoint does between its last layer and its decoder: [B, L, D] both."""
        raise NotImplementedError

    def _decoder(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())
