"""Tokenized data: chunks of token ids of everything there is, kept on disk between runs."""

import contextlib
import functools
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from masked_diffusion.digests import tokenizer_fingerprint
from student_trainer.chunks import Chunking, Chunks, cut, frame
from student_trainer.data_sources import row_files
from student_trainer.documents import Document
from student_trainer.row_keys import HubSelection, RowKeys
from student_trainer.window_loader import load_windows
from student_trainer.windows import WindowPlan

CACHE_VERSION = 2
_HASHED_TOKENS = 1 << 24
_PARTIAL = ".partial"
_ABANDONED_S = 6 * 3600.0
ROWS_PER_WINDOW = 1024
"""Rows that one process reads and tokenizes at a time."""
TOKENS_FILE, OFFSETS_FILE = "token_ids.i32", "offsets.npy"
PROMPTS_FILE, COUNTS_FILE = "prompt_lengths.npy", "counts.json"


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
    """See `Chunks.num_dropped`."""
    num_dropped_tokens: int
    """See `Chunks.num_dropped_tokens`."""
    known_digest: str | None = None
    """`digest`, where it was computed before."""

    @functools.cached_property
    def digest(self) -> str:
        """Of the sequences in their order, wherever they were read from."""
        if self.known_digest is not None:
            return self.known_digest
        content = _new_hash()
        for first in range(0, len(self.token_ids), _HASHED_TOKENS):
            content.update(_ids_bytes(self.token_ids[first : first + _HASHED_TOKENS]))
        return _content_digest(content, self.offsets, self.prompt_lengths)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def sequence(self, index: int) -> np.ndarray:
        """Returns the ids of one sequence, [length] int32, a view."""
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the ids of one sequence and its prompt's length."""
        return self.sequence(index), int(self.prompt_lengths[index])


def load_dataset(
    train_path: str,
    *,
    text_keys: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_len: int,
    min_chunk_tokens: int,
    cache_folder: Path | None = None,
    keys: RowKeys | None = None,
    selection: HubSelection | None = None,
    num_workers: int = 0,
) -> TokenizedDataset:
    """Reads and tokenizes the data, or takes the result of an earlier run from the cache.

    The cache is valid for the same files (path, size, time of change), tokenizer and lengths; its
    arrays are mapped into memory, not read. Ranks may call this at the same time: each writes a
    folder of its own, then renames it.

    Args:
        train_path: See `data_sources.row_files`.
        text_keys: See `RowKeys.text`; not read where `keys` are given.
        num_workers: Processes that read and tokenize; 0 = this one.
    """
    plan = WindowPlan(
        files=row_files(train_path, selection=selection),
        keys=keys or RowKeys(text=tuple(text_keys)),
        tokenizer=tokenizer,
        chunking=Chunking(max_seq_len=max_seq_len, min_chunk_tokens=min_chunk_tokens),
        num_rows=ROWS_PER_WINDOW,
        seed=None,
    )
    if cache_folder is None:
        with contextlib.closing(load_windows(plan, num_workers=num_workers)) as windows:
            return _gather([window.chunks for window in windows], plan.chunking)
    folder = cache_folder / _digest([cut_digest(plan), *(file.identity for file in plan.files)])
    if not folder.exists():
        with contextlib.closing(load_windows(plan, num_workers=num_workers)) as windows:
            _save((window.chunks for window in windows), folder, plan.chunking)
    return _load(folder)


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chunking: Chunking,
) -> TokenizedDataset:
    """Cuts documents into chunks, see `chunks.cut`, and holds them all.

    Raises:
        ValueError: no chunk is left.
    """
    return _gather([cut(documents, tokenizer, chunking=chunking)], chunking)


def cut_digest(plan: WindowPlan) -> str:
    """Tells whether the same rows would be cut in the same way."""
    tokens = [tokenizer_fingerprint(plan.tokenizer), *frame(plan.tokenizer)]
    if plan.keys.messages:
        tokens.append(str(plan.tokenizer.chat_template))
    return _digest([CACHE_VERSION, asdict(plan.keys), tokens, asdict(plan.chunking)])


def _digest(key: list[object]) -> str:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()


def _new_hash() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def _ids_bytes(ids: np.ndarray) -> bytes:
    return ids.astype("<i4").tobytes()


def _content_digest(
    ids_hash: "hashlib.blake2b", offsets: np.ndarray, prompt_lengths: np.ndarray
) -> str:
    """The digest of a data set whose ids have been hashed."""
    ids_hash.update(offsets.astype("<i8").tobytes())
    ids_hash.update(_ids_bytes(prompt_lengths))
    return ids_hash.hexdigest()


def _gather(parts: Sequence[Chunks], chunking: Chunking) -> TokenizedDataset:
    total = Chunks()
    for part in parts:
        total.count(part)
    pieces = [piece for part in parts for piece in part.pieces]
    if not pieces:
        raise total.empty_error(chunking)
    prompt_lengths = [length for part in parts for length in part.prompt_lengths]
    return TokenizedDataset(
        token_ids=np.concatenate(pieces),
        offsets=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        prompt_lengths=np.array(prompt_lengths, dtype=np.int32),
        num_documents=total.num_documents,
        num_dropped_chunks=total.num_dropped,
        num_dropped_tokens=total.num_dropped_tokens,
    )


def _save(parts: Iterable[Chunks], folder: Path, chunking: Chunking) -> None:
    """Writes the ids as they come, so that memory holds one part of them at a time."""
    _remove_abandoned(folder)
    # No process id: those repeat between machines and containers.
    partial = folder.with_suffix(f".{secrets.token_hex(8)}{_PARTIAL}")
    partial.mkdir(parents=True)
    try:
        total, lengths, prompt_lengths = Chunks(), [0], list[int]()
        ids_hash = _new_hash()
        with (partial / TOKENS_FILE).open("wb") as file:
            for part in parts:
                total.count(part)
                for piece in part.pieces:
                    written = _ids_bytes(piece)
                    file.write(written)
                    ids_hash.update(written)
                lengths += map(len, part.pieces)
                prompt_lengths += part.prompt_lengths
        if not prompt_lengths:
            raise total.empty_error(chunking)
        offsets = np.cumsum(lengths, dtype=np.int64)
        prompts = np.array(prompt_lengths, dtype=np.int32)
        np.save(partial / OFFSETS_FILE, offsets)
        np.save(partial / PROMPTS_FILE, prompts)
        counts = {
            "num_documents": total.num_documents,
            "num_dropped_chunks": total.num_dropped,
            "num_dropped_tokens": total.num_dropped_tokens,
            "known_digest": _content_digest(ids_hash, offsets, prompts),
        }
        (partial / COUNTS_FILE).write_text(json.dumps(counts), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            # Another process may have been first: its folder has the same content.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left of this folder; one that lives writes all the time."""
    for partial in folder.parent.glob(f"{folder.name}.*{_PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            paths = [partial, *partial.iterdir()]
            idle_s = time.time() - max(path.stat().st_mtime for path in paths)
            if idle_s > _ABANDONED_S:
                shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path) -> TokenizedDataset:
    offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r")
    path = folder / TOKENS_FILE
    wanted, found = 4 * int(offsets[-1]), path.stat().st_size
    if found != wanted:
        raise ValueError(
            f"{path} has {found} bytes instead of {wanted}; remove the folder, and the data are "
            "tokenized again"
        )
    return TokenizedDataset(
        token_ids=np.memmap(path, dtype="<i4", mode="r"),
        offsets=offsets,
        prompt_lengths=np.load(folder / PROMPTS_FILE, mmap_mode="r"),
        **json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8")),
    )
