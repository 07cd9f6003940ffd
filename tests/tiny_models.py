"""Builders of tiny tokenizers and checkpoints: real classes, random weights."""

from collections.abc import Iterable

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Config

MASK_TOKEN = "<M>"

PYTHON_SOURCES = (
    "def add(left, right):\n    return left + right\n",
    "for index in range(10):\n    print(index, index * index)\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    "import os\n\nif os.path.exists(path):\n    with open(path) as file:\n        read(file)\n",
    "while queue:\n    item = queue.pop()\n    if item is None:\n        continue\n",
)


def train_tokenizer(
    texts: Iterable[str] = PYTHON_SOURCES, *, vocab_size: int = 300
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with <|endoftext|> (eos, pad), <|bos|> and the mask token."""
    special = ["<|endoftext|>", "<|bos|>", MASK_TOKEN]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=special[0],
        pad_token=special[0],
        bos_token=special[1],
        mask_token=MASK_TOKEN,
    )


def qwen2_config(
    *,
    vocab_size: int,
    hidden_size: int = 32,
    num_layers: int = 2,
    num_heads: int = 2,
    max_length: int = 256,
    initializer_range: float = 0.1,
    tie_word_embeddings: bool = True,
) -> Qwen2Config:
    """Makes a small Qwen2 config.

    The initialisation is wider than usual so that random weights give distinct, peaked outputs.
    """
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_length,
        initializer_range=initializer_range,
        tie_word_embeddings=tie_word_embeddings,
    )
