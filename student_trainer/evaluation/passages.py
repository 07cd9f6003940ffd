"""Passages: texts that a scorer judges, and what it says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text, and what stands before it and is not judged."""

    text: str
    given: str = ""


@dataclass(frozen=True, kw_only=True)
class PassageScores:
    """What a scorer spends on each of N passages."""

    nats: np.ndarray
    """[N] float64: negative log-likelihood of the judged text, or a bound on it."""
    num_tokens: np.ndarray
    """[N] int64: judged tokens, the scorer's own."""
    num_bytes: np.ndarray
    """[N] int64: bytes of the judged text in UTF-8."""


class Scorer(Protocol):
    """A judge of texts."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def kind(self) -> str:
        """What its nats are."""

    def score(self, passages: Sequence[Passage], *, batch_size: int) -> PassageScores:
        """Judges every passage; an empty one costs nothing and has no tokens.

        Raises:
            ValueError: a passage is longer than the scorer takes.
        """


@dataclass(frozen=True, kw_only=True)
class EncodedPassage:
    """A passage in a scorer's ids."""

    token_ids: list[int]
    first_judged: int
    """Index of the first id that reaches into the judged text."""


def encode(passage: Passage, tokenizer: PreTrainedTokenizerBase) -> EncodedPassage:
    """Tokenizes given and judged text together; a token over the border counts as judged."""
    encoded = tokenizer(
        passage.given + passage.text,
        add_special_tokens=False,
        # A text that spells a special token means its letters.
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    border = len(passage.given)
    ends = [end for _, end in encoded["offset_mapping"]]
    first = next((index for index, end in enumerate(ends) if end > border), len(ends))
    return EncodedPassage(token_ids=list(encoded["input_ids"]), first_judged=first)


def require_offsets(tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Refuses a tokenizer that cannot say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of scorer {name} has no fast version (tokenizer.json), which is needed "
            "to tell given from judged text; convert it with AutoTokenizer and save_pretrained"
        )


def num_bytes(passages: Sequence[Passage]) -> np.ndarray:
    """Bytes of the judged text of each, [N] int64."""
    return np.array([len(passage.text.encode()) for passage in passages], dtype=np.int64)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids_L: Tensor) -> str:
    """Turns ids into text as it stands, special tokens left out."""
    text = tokenizer.decode(
        token_ids_L.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
