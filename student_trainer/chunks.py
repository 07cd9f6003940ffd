"""Chunks: what documents become, sequences of at most so many token ids."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from student_trainer.chat import render
from student_trainer.documents import Document

DOCUMENTS_PER_CALL = 256  # one tokenizer call; large enough to use its threads


@dataclass(frozen=True, kw_only=True)
class Chunking:
    """How documents are cut."""

    max_seq_len: int
    """Longest chunk, with its beginning-of-sequence token."""
    min_chunk_tokens: int
    """Fewest tokens of data that make a chunk; shorter tails are dropped. Answers to a prompt may
    be as short as they like."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chunk_tokens < self.max_seq_len:
            raise ValueError(
                f"need 1 <= min_chunk_tokens < max_seq_len, got "
                f"min_chunk_tokens={self.min_chunk_tokens} and max_seq_len={self.max_seq_len}"
            )


@dataclass
class Chunks:
    """Sequences of ids, and what was left out to get them."""

    pieces: list[np.ndarray] = field(default_factory=list)
    """[length] int32 each."""
    prompt_lengths: list[int] = field(default_factory=list)
    """Leading ids that are never masked, 0 without a prompt."""
    num_documents: int = 0
    num_dropped: int = 0
    """Chunks left out: shorter than `min_chunk_tokens`, or with an empty answer."""
    num_dropped_tokens: int = 0
    """Tokens of these, and tokens that were cut from prompts and answers too long together."""

    def count(self, other: "Chunks") -> None:
        """Adds what another one counted, not its pieces."""
        self.num_documents += other.num_documents
        self.num_dropped += other.num_dropped
        self.num_dropped_tokens += other.num_dropped_tokens

    def empty_error(self, chunking: Chunking) -> ValueError:
        """What to say where all documents give no chunk."""
        return ValueError(
            f"no chunk left of {self.num_documents} documents: {self.num_dropped} chunks have "
            f"fewer than min_chunk_tokens={chunking.min_chunk_tokens} tokens or an empty answer"
        )


def cut(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, chunking: Chunking
) -> Chunks:
    """Cuts each document, followed by the end-of-sequence token, into chunks.

    Every chunk starts with the beginning-of-sequence token where the tokenizer has one: families
    whose logits are shifted cannot predict position 0, so no token of the data may stand there.
    Tokenizers of encoders call the two [CLS] and [SEP]; a masked LM that never saw a sequence
    without them does worse on one.

    A tail with fewer than `min_chunk_tokens` tokens of data is dropped and counted. A prompt with
    its answer is one chunk: where both are too long, the beginning of the prompt goes first, and
    then the end of the answer.
    """
    first, last = frame(tokenizer)
    head = [] if first is None else [first]
    tail = [] if last is None else [last]
    size = chunking.max_seq_len - len(head)
    chunks = Chunks()
    for document, prompt_ids, text_ids in _encoded(documents, tokenizer):
        chunks.num_documents += 1
        if document.messages is not None:
            # The template writes both ends itself, or wants none.
            prompt = prompt_ids[1:] if prompt_ids[:1] == head else prompt_ids
            _add_pair(chunks, head, prompt, text_ids, size=size)
        elif document.prompt:
            answer = text_ids + tail if text_ids else []
            _add_pair(chunks, head, prompt_ids, answer, size=size)
        else:
            _add_text(chunks, head, text_ids + tail, size=size, least=chunking.min_chunk_tokens)
    return chunks


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Finds the ids that begin a chunk and end a document, None where there is none."""
    names = (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id"))
    first, last = (
        next(
            (token_id for name in pair if (token_id := getattr(tokenizer, name)) is not None), None
        )
        for pair in names
    )
    return first, last


def _add_text(chunks: Chunks, head: list[int], ids: list[int], *, size: int, least: int) -> None:
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        if len(piece) < least:
            chunks.num_dropped += 1
            chunks.num_dropped_tokens += len(piece)
            continue
        chunks.pieces.append(np.array(head + piece, dtype=np.int32))
        chunks.prompt_lengths.append(0)


def _add_pair(
    chunks: Chunks, head: list[int], prompt: list[int], answer: list[int], *, size: int
) -> None:
    if not answer:
        chunks.num_dropped += 1
        chunks.num_dropped_tokens += len(prompt)
        return
    answer_kept = answer[:size]
    prompt_kept = prompt[max(len(prompt) - (size - len(answer_kept)), 0) :]
    chunks.pieces.append(np.array(head + prompt_kept + answer_kept, dtype=np.int32))
    chunks.prompt_lengths.append(len(head) + len(prompt_kept))
    chunks.num_dropped_tokens += len(prompt) + len(answer) - len(prompt_kept) - len(answer_kept)


def _encoded(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, list[int], list[int]]]:
    """Documents with the ids of their prompts and of their texts, in order."""
    iterator = iter(documents)
    while group := list(itertools.islice(iterator, DOCUMENTS_PER_CALL)):
        for is_chat, same in itertools.groupby(group, lambda item: item.messages is not None):
            kind = list(same)
            pairs = [
                (document.prompt, document.text)
                if document.messages is None
                else render(document.messages, tokenizer, source=document.source)
                for document in kind
            ]
            prompts = _encode([prompt for prompt, _ in pairs], tokenizer, has_special=is_chat)
            texts = _encode([text for _, text in pairs], tokenizer, has_special=is_chat)
            yield from zip(kind, prompts, texts, strict=True)


def _encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, has_special: bool
) -> list[list[int]]:
    # split_special_tokens: "<M>" spelled out in a document is text, never a mask in the data.
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=not has_special, verbose=False
    )
    token_ids: list[list[int]] = encoded["input_ids"]
    return token_ids
