"""Dream, Dream-Coder and DiffuCoder: Qwen2 weights under a model_type of their own."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from masked_diffusion.families.qwen2 import Qwen2


class Dream(Qwen2):
    """A Qwen2 decoder published with remote code; raw row p - 1 predicts token p.

    The tensors have Qwen2's own names. DiffuCoder's tokenizer pads with <|dlm_pad|> (151667) where
    its config says 151643: the tokenizer's is reported, since it is what its texts are padded with,
    and nothing depends on it, for batches are padded by length and never read from ids.
    """

    family = "Dream"
    default_mask_token_id = 151666

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Reads the published fields, which are Qwen2's.

        Raises:
            ValueError: a block-causal relative (Dream's reasoner) under the same model_type.
        """
        if values.get("block_size") is not None:
            raise ValueError(
                f"config.block_size is {values['block_size']!r}: this checkpoint attends by "
                "blocks, which the family Dream does not do; it serves Dream-v0, Dream-Coder and "
                "DiffuCoder, whose configs have no block_size"
            )
        return super().read_config(values)
