"""The config of MDLM's network."""

from transformers import PreTrainedConfig


class MdlmConfig(PreTrainedConfig):
    """Sizes of the network, under the published names and under transformers' usual ones."""

    model_type = "mdlm"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "n_blocks",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "model_length",
    }

    vocab_size: int = 50258
    model_length: int = 1024
    hidden_dim: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    dropout: float | int = 0.1
    time_conditioning: bool = False
    noise: str = "absorbing"
    """Or "uniform", for our own checkpoints of multinomial diffusion."""
    tie_word_embeddings: bool = False
    mask_token_id: int | None = None
    """None is the last row, which the published checkpoints add to their tokenizer's vocabulary."""

    def __post_init__(self, **kwargs: object) -> None:
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        super().__post_init__(**kwargs)
