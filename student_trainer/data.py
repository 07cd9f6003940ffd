"""Tokenized data: documents as chunks of token ids, kept on disk between runs."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from masked_diffusion.digests import tokenizer_fingerprint
from student_trainer.documents import Document, data_files, load_documents

CACHE_VERSION = 1
DOCUMENTS_PER_CALL = 256  # one tokenizer call; large enough to use its threads


@dataclass(frozen=True, kw_only=True)
class Chunking:
    """How documents are cut."""

    max_seq_len: int
    """Longest chunk, with its beginning-of-sequence token."""
    min_chunk_tokens: int
    """Fewest tokens of data that make a chunk; shorter tails are dropped."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chunk_tokens < self.max_seq_len:
            raise ValueError(
                f"need 1 <= min_chunk_tokens < max_seq_len, got "
                f"min_chunk_tokens={self.min_chunk_tokens} and max_seq_len={self.max_seq_len}"
            )


@dataclass(frozen=True, kw_only=True)
class TokenizedDataset:
    """Chunks of at most `max_seq_len` ids: one flat array and where each chunk begins in it."""

    token_ids: np.ndarray
    """[total] int32."""
    offsets: np.ndarray
    """[num_sequences + 1] int64; sequence i is token_ids[offsets[i] : offsets[i + 1]]."""
    prompt_lengths: np.ndarray
    """[num_sequences] int32: leading ids that are never masked, 0 without a prompt."""
    num_documents: int
    num_dropped_chunks: int
    """Chunks left out: shorter than `min_chunk_tokens`, or nothing but prompt."""
    num_dropped_tokens: int

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def sequence(self, index: int) -> np.ndarray:
        """Returns the ids of one sequence, [length] int32, a view."""
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]


def load_dataset(
    train_path: str,
    *,
    text_keys: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_len: int,
    min_chunk_tokens: int,
    cache_folder: Path | None = None,
) -> TokenizedDataset:
    """Reads and tokenizes the files, or takes the result of an earlier run from the cache.

    The cache is valid for the same files (path, size, time of change), tokenizer and lengths.
    Ranks may call this at the same time: each writes a file of its own, then renames it.
    """
    chunking = Chunking(max_seq_len=max_seq_len, min_chunk_tokens=min_chunk_tokens)
    if cache_folder is None:
        documents = load_documents(train_path, text_keys=text_keys)
        return tokenize_documents(documents, tokenizer, chunking=chunking)
    digest = _cache_digest(train_path, text_keys, tokenizer, chunking)
    path = cache_folder / f"{digest}.safetensors"
    if not path.exists():
        documents = load_documents(train_path, text_keys=text_keys)
        _save(tokenize_documents(documents, tokenizer, chunking=chunking), path)
    return _load(path)


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chunking: Chunking,
) -> TokenizedDataset:
    """Cuts each document, followed by the end-of-sequence token, into chunks.

    Every chunk starts with the beginning-of-sequence token where the tokenizer has one: families
    whose logits are shifted cannot predict position 0, so no token of the data may stand there.
    Tokenizers of encoders call the two [CLS] and [SEP]; a masked LM that never saw a sequence
    without them does worse on one.
    A tail with fewer than `min_chunk_tokens` tokens of data is dropped and counted.
    """
    chunks = _Chunks(_frame(tokenizer)[0], chunking)
    num_documents = 0
    for prompt_ids, text_ids in _encoded(documents, tokenizer):
        num_documents += 1
        chunks.add(np.array(prompt_ids + text_ids, dtype=np.int32), num_prompt=len(prompt_ids))
    if not chunks.pieces:
        raise ValueError(
            f"no chunk left of {num_documents} documents: {chunks.num_dropped} chunks have fewer "
            f"than min_chunk_tokens={chunking.min_chunk_tokens} tokens or hold only prompt"
        )
    return TokenizedDataset(
        token_ids=np.concatenate(chunks.pieces),
        offsets=np.cumsum([0, *map(len, chunks.pieces)], dtype=np.int64),
        prompt_lengths=np.array(chunks.prompt_lengths, dtype=np.int32),
        num_documents=num_documents,
        num_dropped_chunks=chunks.num_dropped,
        num_dropped_tokens=chunks.num_dropped_tokens,
    )


@dataclass
class _Chunks:
    """Grows by one document at a time."""

    first_token_id: int | None
    chunking: Chunking
    pieces: list[np.ndarray] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    num_dropped: int = 0
    num_dropped_tokens: int = 0

    def add(self, ids: np.ndarray, *, num_prompt: int) -> None:
        head = [] if self.first_token_id is None else [self.first_token_id]
        size = self.chunking.max_seq_len - len(head)
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            piece_prompt = min(max(num_prompt - start, 0), len(piece))
            if len(piece) < self.chunking.min_chunk_tokens or piece_prompt == len(piece):
                self.num_dropped += 1
                self.num_dropped_tokens += len(piece)
                continue
            self.pieces.append(np.concatenate([np.array(head, dtype=np.int32), piece]))
            self.prompt_lengths.append(len(head) + piece_prompt if piece_prompt else 0)


def _encoded(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:
    last_token_id = _frame(tokenizer)[1]
    tail = [] if last_token_id is None else [last_token_id]
    iterator = iter(documents)
    while group := list(islice(iterator, DOCUMENTS_PER_CALL)):
        prompts = _encode([document.prompt for document in group], tokenizer)
        texts = _encode([document.text for document in group], tokenizer)
        for prompt_ids, text_ids in zip(prompts, texts, strict=True):
            yield prompt_ids, text_ids + tail


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # split_special_tokens: "<M>" spelled out in a document is text, never a mask in the data.
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    token_ids: list[list[int]] = encoded["input_ids"]
    return token_ids


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Finds the ids that begin a chunk and end a document, None where there is none."""
    names = (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id"))
    first, last = (
        next(
            (token_id for name in pair if (token_id := getattr(tokenizer, name)) is not None), None
        )
        for pair in names
    )
    return first, last


def _cache_digest(
    train_path: str,
    text_keys: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    chunking: Chunking,
) -> str:
    files = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in data_files(train_path)
    ]
    tokens = [tokenizer_fingerprint(tokenizer), *_frame(tokenizer)]
    key = [CACHE_VERSION, files, list(text_keys), tokens, asdict(chunking)]
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()


def _save(dataset: TokenizedDataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    arrays = {name: getattr(dataset, name) for name in ("token_ids", "offsets", "prompt_lengths")}
    counts = ("num_documents", "num_dropped_chunks", "num_dropped_tokens")
    save_file(arrays, partial, metadata={name: str(getattr(dataset, name)) for name in counts})
    partial.replace(path)


def _load(path: Path) -> TokenizedDataset:
    with safe_open(path, framework="numpy") as file:
        counts = file.metadata()
        return TokenizedDataset(
            token_ids=file.get_tensor("token_ids"),
            offsets=file.get_tensor("offsets"),
            prompt_lengths=file.get_tensor("prompt_lengths"),
            num_documents=int(counts["num_documents"]),
            num_dropped_chunks=int(counts["num_dropped_chunks"]),
            num_dropped_tokens=int(counts["num_dropped_tokens"]),
        )
