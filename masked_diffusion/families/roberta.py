"""RoBERTa and XLM-RoBERTa as denoisers, with transformers' own classes."""

from typing import ClassVar, cast

from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from masked_diffusion.families.encoder import Encoder


class Roberta(Encoder):
    """A RoBERTa with its masked-LM head: BERT's layers under other names and places.

    Its first token has the place pad_token_id + 1 in the table of positions. A pad id gets the
    place pad_token_id wherever it stands, so it is for padding alone.
    """

    family = "roberta"
    config_class: ClassVar[type[PreTrainedConfig]] = RobertaConfig
    model_class: ClassVar[type[PreTrainedModel]] = RobertaForMaskedLM
    layer_pattern = r"(?<=\blayer\.)\d+(?=\.)"

    @classmethod
    def max_length(cls, config: PreTrainedConfig) -> int:
        """Rows of the table of positions, without those up to the pad id's."""
        return int(config.max_position_embeddings) - int(config.pad_token_id) - 1

    @property
    def first_position(self) -> int:
        return int(self.model.config.pad_token_id) + 1

    def transform(self, hidden_BLD: Tensor) -> Tensor:
        head = cast(RobertaForMaskedLM, self.model).lm_head
        return cast(Tensor, head.layer_norm(nn.functional.gelu(head.dense(hidden_BLD))))


class XlmRoberta(Roberta):
    """XLM-RoBERTa: the same network on a vocabulary of a hundred languages."""

    family = "xlm-roberta"
    config_class = XLMRobertaConfig
    model_class = XLMRobertaForMaskedLM
