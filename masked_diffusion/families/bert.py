"""BERT as a denoiser, with transformers' own classes."""

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from masked_diffusion.families.encoder import Encoder


class Bert(Encoder):
    """A BERT with its masked-LM head; every token is of segment 0.

    Pooler and next-sentence head of a published checkpoint are left out, for they are no part of
    the denoiser.
    """

    family = "bert"
    config_class = BertConfig
    model_class = BertForMaskedLM
    # The first checkpoints came from TensorFlow and keep its names of a norm's tensors.
    key_mapping: ClassVar[Mapping[str, str]] = {
        "LayerNorm.gamma": "LayerNorm.weight",
        "LayerNorm.beta": "LayerNorm.bias",
    }
    layer_pattern = r"(?<=\blayer\.)\d+(?=\.)"

    def transform(self, hidden_BLD: Tensor) -> Tensor:
        head = cast(BertForMaskedLM, self.model).cls.predictions
        return cast(Tensor, head.transform(hidden_BLD))
