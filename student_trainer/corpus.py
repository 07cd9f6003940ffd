"""The demo's corpus: the running interpreter's standard library, and a tokenizer trained on it.

What is left out, and why: tests and installed packages (not the library's own code), `encodings`
(about a hundred files that differ only in their tables, so one in the held-out part would have a
near copy in the training part), `pydoc_data` and `_sysconfigdata*` (generated text).
"""

import hashlib
import json
import logging
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
EXCLUDED_PREFIX = "_sysconfigdata"
PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, MASK_TOKEN = "<|pad|>", "<|bos|>", "<|endoftext|>", "<M>"
SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, MASK_TOKEN)
MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
Manifest = dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    path: str
    """Relative to the library's folder, with forward slashes: the same on every machine."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Two jsonl files of {"text", "path"} rows, split by file."""

    train_path: Path
    held_out_path: Path
    digest: str
    """Of the files' paths and contents, the split and the interpreter's version."""
    num_train_files: int
    num_held_out_files: int
    num_train_bytes: int
    num_held_out_bytes: int


def build_corpus(
    folder: Path,
    *,
    library: Path | None = None,
    held_out_fraction: float = 0.08,
    max_bytes: int | None = None,
) -> Corpus:
    """Writes the corpus below `folder`, or leaves it when it is already there and current.

    Args:
        library: Where the sources are; the running interpreter's standard library by default.
        held_out_fraction: Share of the files held out, chosen by a hash of each file's path.
        max_bytes: Limit on both parts together, kept in their proportion: files are taken in
            the order of a hash of their path until a part is full.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction must be inside (0, 1), got {held_out_fraction}")
    root = library if library is not None else Path(sysconfig.get_paths()["stdlib"])
    files = list(library_files(root))
    held_out = [file for file in files if _hash_unit("split", file.path) < held_out_fraction]
    train = [file for file in files if _hash_unit("split", file.path) >= held_out_fraction]
    if max_bytes is not None:
        held_out = _within(held_out, int(max_bytes * held_out_fraction))
        train = _within(train, int(max_bytes * (1 - held_out_fraction)))
    if not train or not held_out:
        raise ValueError(
            f"{root}: {len(train)} files to train on and {len(held_out)} held out of "
            f"{len(files)}; both parts need one, so raise max_bytes or held_out_fraction"
        )
    corpus = Corpus(
        train_path=folder / "train.jsonl",
        held_out_path=folder / "held_out.jsonl",
        digest=_digest(train, held_out),
        num_train_files=len(train),
        num_held_out_files=len(held_out),
        num_train_bytes=_num_bytes(train),
        num_held_out_bytes=_num_bytes(held_out),
    )
    _write(corpus, train, held_out)
    return corpus


def library_files(root: Path) -> Iterator[SourceFile]:
    """Yields the sources below `root` in path order: each content once, UTF-8 and not empty."""
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS.intersection(relative.parts[:-1]) or path.name.startswith(
            EXCLUDED_PREFIX
        ):
            continue
        content = path.read_bytes()
        content_hash = hashlib.blake2b(content).digest()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            logger.info("skipped path=%s reason=not_utf8", relative)
            continue
        if text.strip() and content_hash not in seen:
            seen.add(content_hash)
            yield SourceFile(path=relative.as_posix(), text=text)


def read_sources(path: Path) -> Iterator[SourceFile]:
    """Reads one part of a corpus back."""
    with path.open(encoding="utf-8") as rows:
        for row in rows:
            yield SourceFile(**json.loads(row))


def build_tokenizer(corpus: Corpus, folder: Path, *, vocab_size: int) -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on the training part, or loads the one that `folder` holds.

    Saved in Hugging Face format, with separate tokens for padding, beginning, end and mask.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (bytes and special tokens)")
    manifest: Manifest = {
        "format": FORMAT_VERSION,
        "corpus": corpus.digest,
        "vocab_size": vocab_size,
        "tokenizers": tokenizers.__version__,
    }
    if not _is_current(folder, manifest, ("tokenizer.json", "tokenizer_config.json")):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        model = _train_bpe((file.text for file in read_sources(corpus.train_path)), vocab_size)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=model,
            pad_token=PAD_TOKEN,
            bos_token=BOS_TOKEN,
            eos_token=EOS_TOKEN,
            mask_token=MASK_TOKEN,
        )
        tokenizer.save_pretrained(folder)
        _write_manifest(folder, manifest)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _hash_unit(purpose: str, path: str) -> float:
    """Maps a path to [0, 1), the same on every machine; one hash for each purpose."""
    digest = hashlib.blake2b(f"{purpose}:{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _within(files: list[SourceFile], max_bytes: int) -> list[SourceFile]:
    chosen: list[SourceFile] = []
    remaining = max_bytes
    for file in sorted(files, key=lambda file: _hash_unit("order", file.path)):
        if (size := _num_bytes([file])) <= remaining:
            chosen.append(file)
            remaining -= size
    return sorted(chosen, key=lambda file: file.path)


def _num_bytes(files: list[SourceFile]) -> int:
    return sum(len(file.text.encode()) for file in files)


def _digest(train: list[SourceFile], held_out: list[SourceFile]) -> str:
    state = hashlib.blake2b(f"{FORMAT_VERSION} {platform.python_version()}".encode())
    for part, files in (("train", train), ("held_out", held_out)):
        for file in files:
            content = hashlib.blake2b(file.text.encode()).hexdigest()
            state.update(f"{part} {file.path} {content}\n".encode())
    return state.hexdigest()[:32]


def _write(corpus: Corpus, train: list[SourceFile], held_out: list[SourceFile]) -> None:
    manifest: Manifest = {"format": FORMAT_VERSION, "corpus": corpus.digest}
    folder = corpus.train_path.parent
    if _is_current(folder, manifest, (corpus.train_path.name, corpus.held_out_path.name)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path, files in ((corpus.train_path, train), (corpus.held_out_path, held_out)):
        rows = (json.dumps(asdict(file), ensure_ascii=False) for file in files)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    _write_manifest(folder, manifest)


def _is_current(folder: Path, manifest: Manifest, names: tuple[str, ...]) -> bool:
    """Compares with the manifest, which is removed first and written last by every build."""
    path = folder / MANIFEST_NAME
    if not all(file.exists() for file in (path, *(folder / name for name in names))):
        return False
    current: Manifest = json.loads(path.read_text(encoding="utf-8"))
    return current == manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
