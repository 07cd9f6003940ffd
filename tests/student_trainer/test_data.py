"""Chunks of token ids, and the cache of them."""

import dataclasses
import os

import numpy as np
import pytest

from student_trainer import data
from student_trainer.chunks import Chunking
from student_trainer.data import load_dataset, tokenize_documents
from student_trainer.documents import Document
from tests import training
from tests.fixtures import modernbert
from tests.tiny_models import PYTHON_SOURCES


def document(text, prompt=""):
    return Document(text=text, prompt=prompt, source="test")


def tokenize(texts, tokenizer, *, max_seq_len=16, min_chunk_tokens=1):
    return tokenize_documents(
        [document(text) for text in texts],
        tokenizer,
        chunking=Chunking(max_seq_len=max_seq_len, min_chunk_tokens=min_chunk_tokens),
    )


def encode(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_chunks_joined_without_their_bos_are_the_documents_each_with_an_eos(tiny_tokenizer):
    dataset = tokenize(PYTHON_SOURCES, tiny_tokenizer)

    chunks = [dataset.sequence(index).tolist() for index in range(len(dataset))]

    assert all(chunk[0] == tiny_tokenizer.bos_token_id for chunk in chunks)
    assert max(map(len, chunks)) == 16
    joined = [token_id for chunk in chunks for token_id in chunk[1:]]
    eos = tiny_tokenizer.eos_token_id
    wanted = [
        token_id for text in PYTHON_SOURCES for token_id in [*encode(text, tiny_tokenizer), eos]
    ]
    assert joined == wanted
    assert dataset.token_ids.dtype == np.int32
    assert (dataset.num_documents, dataset.num_dropped_chunks) == (len(PYTHON_SOURCES), 0)


def test_short_tails_are_dropped_and_counted(tiny_tokenizer):
    whole = tokenize(PYTHON_SOURCES, tiny_tokenizer)
    lengths = [len(whole.sequence(index)) - 1 for index in range(len(whole))]

    dataset = tokenize(PYTHON_SOURCES, tiny_tokenizer, min_chunk_tokens=10)

    short = [length for length in lengths if length < 10]
    assert short
    assert len(dataset) == len(lengths) - len(short)
    assert dataset.num_dropped_chunks == len(short)
    assert dataset.num_dropped_tokens == sum(short)


def test_a_mask_spelled_out_in_the_text_is_text(tiny_tokenizer):
    text = "a = '<M>' + '<|endoftext|>'"
    dataset = tokenize([text], tiny_tokenizer, max_seq_len=64)
    ids = dataset.sequence(0).tolist()
    assert tiny_tokenizer.mask_token_id not in ids
    assert ids.count(tiny_tokenizer.eos_token_id) == 1
    assert tiny_tokenizer.decode(ids[1:-1]) == text


def test_the_cache_gives_the_same_data_and_is_not_made_twice(tiny_tokenizer, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text(PYTHON_SOURCES[0] * 4)
    cache = tmp_path / "cache"

    def load(max_seq_len=16):
        return load_dataset(
            str(source),
            text_keys=["text"],
            tokenizer=tiny_tokenizer,
            max_seq_len=max_seq_len,
            min_chunk_tokens=2,
            cache_folder=cache,
        )

    first = load()
    (path,) = cache.iterdir()
    made = path.stat().st_mtime_ns
    again = load()
    assert path.stat().st_mtime_ns == made
    for name in ("token_ids", "offsets", "prompt_lengths"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
        assert isinstance(getattr(again, name), np.memmap)
    assert again.num_dropped_tokens == first.num_dropped_tokens

    (path / "token_ids.i32").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="remove the folder, and the data are tokenized again"):
        load()

    load(max_seq_len=8)
    source.write_text(PYTHON_SOURCES[1] * 4)
    assert not np.array_equal(load().token_ids, first.token_ids)
    assert len(list(cache.iterdir())) == 3


def test_nothing_left_is_an_error_with_the_counts(tiny_tokenizer):
    with pytest.raises(ValueError, match="no chunk left of 1 documents: 1 chunks"):
        tokenize(["x"], tiny_tokenizer, min_chunk_tokens=5)


@pytest.mark.parametrize(("max_seq_len", "min_chunk_tokens"), [(16, 0), (16, 16), (1, 1)])
def test_lengths_that_cannot_work_are_refused(max_seq_len, min_chunk_tokens):
    with pytest.raises(ValueError, match="need 1 <= min_chunk_tokens < max_seq_len"):
        Chunking(max_seq_len=max_seq_len, min_chunk_tokens=min_chunk_tokens)


def test_an_encoders_tokenizer_frames_with_cls_and_sep():
    tokenizer = modernbert._tokenizer()
    dataset = tokenize(["return self"], tokenizer, max_seq_len=64)
    ids = dataset.sequence(0).tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_a_worker_makes_the_same_cache(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ROWS_PER_WINDOW", 3)
    path = training.write_texts(tmp_path, num_documents=20)

    def load(num_workers):
        return load_dataset(
            str(path),
            text_keys=["text"],
            tokenizer=tiny_tokenizer,
            max_seq_len=32,
            min_chunk_tokens=4,
            cache_folder=tmp_path / f"cache{num_workers}",
            num_workers=num_workers,
        )

    alone, helped = load(0), load(1)
    for name in ("token_ids", "offsets", "prompt_lengths"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(helped, name))
    assert (helped.num_documents, helped.num_dropped_tokens) == (20, alone.num_dropped_tokens)


def test_a_row_that_cannot_be_read_leaves_no_cache(tiny_tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x = 1"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: 'text' must be a string"):
        load_dataset(
            str(tmp_path / "a.jsonl"),
            text_keys=["text"],
            tokenizer=tiny_tokenizer,
            max_seq_len=32,
            min_chunk_tokens=1,
            cache_folder=tmp_path / "cache",
        )
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_digest_is_of_the_sequences_in_their_order_and_of_nothing_else(
    tiny_tokenizer, tmp_path
):
    def load(*texts, folder="a", **options):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (path / f"{number}.txt").write_text(text)
        return load_dataset(
            str(path),
            text_keys=["text"],
            tokenizer=tiny_tokenizer,
            max_seq_len=16,
            min_chunk_tokens=1,
            **options,
        )

    one, other, *_ = PYTHON_SOURCES
    read = load(one, other)
    swapped = load(other, one, folder="b")
    assert len(read.token_ids) == len(swapped.token_ids)
    assert read.digest != swapped.digest
    # From memory, written to a cache, read from it, and from files that moved.
    cache = tmp_path / "cache"
    cached = [load(one, other, folder="c", cache_folder=cache) for _ in range(2)]
    older = dataclasses.replace(cached[1], known_digest=None)
    assert {read.digest, *(found.digest for found in cached), older.digest} == {read.digest}
    # The same ids, cut in other places or with another prompt, are other sequences.
    offsets = read.offsets.copy()
    offsets[1] -= 1
    prompts = read.prompt_lengths + 1
    assert dataclasses.replace(read, offsets=offsets).digest != read.digest
    assert dataclasses.replace(read, prompt_lengths=prompts).digest != read.digest


def test_what_killed_processes_left_is_in_nobodys_way_and_goes_in_the_end(tiny_tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(PYTHON_SOURCES[0])

    def load():
        return load_dataset(
            str(path),
            text_keys=["text"],
            tokenizer=tiny_tokenizer,
            max_seq_len=16,
            min_chunk_tokens=1,
            cache_folder=tmp_path / "cache",
        )

    load()
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "elsewhere")
    # Process ids repeat; this one may also be another machine's, which is at work.
    fresh = folder.with_suffix(f".{os.getpid()}.partial")
    old = folder.with_suffix(".7.partial")
    for partial in (fresh, old):
        partial.mkdir()
        (partial / data.TOKENS_FILE).touch()
    for changed in (old / data.TOKENS_FILE, old):
        os.utime(changed, (0, 0))

    load()

    assert set((tmp_path / "cache").iterdir()) == {folder, fresh}
    assert folder.stat().st_mode == (tmp_path / "elsewhere").stat().st_mode
