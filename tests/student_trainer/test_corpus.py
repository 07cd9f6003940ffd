"""The corpus and its tokenizer, on a small library of our own making."""

import json

import pytest

from masked_diffusion.checkpoints import new_denoiser
from student_trainer.corpus import build_corpus, build_tokenizer, library_files, read_sources
from tests.tiny_models import qwen2_config


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "library"
    for index in range(60):
        path = root / f"package{index % 4}" / f"module{index}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def function{index}(value):\n    return value + {index}\n")
    return root


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_split_is_by_file_and_leaves_none_out(library, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", library=library, held_out_fraction=0.2)

    train = {row["path"] for row in rows(corpus.train_path)}
    held_out = {row["path"] for row in rows(corpus.held_out_path)}

    assert not train & held_out
    assert len(train | held_out) == 60
    assert 4 <= len(held_out) <= 22  # 12 expected; four standard deviations
    assert (corpus.num_train_files, corpus.num_held_out_files) == (len(train), len(held_out))
    text_bytes = sum(len(row["text"].encode()) for row in rows(corpus.train_path))
    assert corpus.num_train_bytes == text_bytes
    assert [vars(file) for file in read_sources(corpus.train_path)] == rows(corpus.train_path)


def test_a_file_keeps_its_side_when_others_come_and_go(library, tmp_path):
    before = build_corpus(tmp_path / "before", library=library, held_out_fraction=0.2)
    write(library, "another.py", b"another = True\n")
    (library / "package0" / "module0.py").unlink()
    after = build_corpus(tmp_path / "after", library=library, held_out_fraction=0.2)

    def paths(path):
        return {row["path"] for row in rows(path)} - {"another.py", "package0/module0.py"}

    assert paths(before.held_out_path) == paths(after.held_out_path)
    assert before.digest != after.digest


def test_tests_packages_tables_copies_and_undecodable_files_are_left_out(tmp_path):
    root = tmp_path / "library"
    write(root, "kept.py", b"kept = 1\n")
    write(root, "the_same.py", b"kept = 1\n")
    write(root, "latin.py", b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    write(root, "empty.py", b"\n")
    write(root, "_sysconfigdata_linux.py", b"built = {}\n")
    for folder in ("test", "json/tests", "idlelib/idle_test", "site-packages/numpy", "encodings"):
        write(root, f"{folder}/module.py", f"folder = {folder!r}\n".encode())
    write(root, "testing.py", b"not_a_folder = 1\n")

    assert [file.path for file in library_files(root)] == ["kept.py", "testing.py"]


def test_a_byte_limit_takes_a_part_of_both_sides(library, tmp_path):
    whole = build_corpus(tmp_path / "whole", library=library, held_out_fraction=0.25)
    max_bytes = (whole.num_train_bytes + whole.num_held_out_bytes) // 2
    part = build_corpus(
        tmp_path / "part", library=library, held_out_fraction=0.25, max_bytes=max_bytes
    )

    assert 0.9 * max_bytes * 0.75 < part.num_train_bytes <= max_bytes * 0.75
    assert 0 < part.num_held_out_bytes <= max_bytes * 0.25
    for name in ("train_path", "held_out_path"):
        chosen = {row["path"] for row in rows(getattr(part, name))}
        assert chosen < {row["path"] for row in rows(getattr(whole, name))}


def test_a_current_corpus_is_left_alone_and_a_damaged_one_is_made_again(library, tmp_path):
    folder = tmp_path / "corpus"
    corpus = build_corpus(folder, library=library)
    made = corpus.train_path.stat().st_mtime_ns
    assert build_corpus(folder, library=library) == corpus
    assert corpus.train_path.stat().st_mtime_ns == made

    corpus.held_out_path.unlink()
    assert build_corpus(folder, library=library) == corpus
    assert rows(corpus.held_out_path)


@pytest.mark.parametrize("held_out_fraction", [0, 1, -0.1])
def test_a_fraction_outside_the_unit_interval_is_refused(library, tmp_path, held_out_fraction):
    with pytest.raises(ValueError, match=r"held_out_fraction must be inside \(0, 1\)"):
        build_corpus(tmp_path, library=library, held_out_fraction=held_out_fraction)


def test_a_limit_that_leaves_one_side_empty_is_refused(library, tmp_path):
    with pytest.raises(ValueError, match="raise max_bytes"):
        build_corpus(tmp_path, library=library, max_bytes=10)


def test_the_tokenizer_is_lossless_and_keeps_its_four_tokens_apart(library, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", library=library)
    folder = tmp_path / "tokenizer"
    tokenizer = build_tokenizer(corpus, folder, vocab_size=300)

    text = "def f(x):\n\treturn 'é \u4e2d\U0001f600'\n\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    special = {
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    }
    assert len(special) == 4
    assert tokenizer.mask_token == "<M>"
    denoiser = new_denoiser(qwen2_config(vocab_size=300), tokenizer, seed=0)
    assert denoiser.info.mask_token_id == tokenizer.mask_token_id
    assert denoiser.info.special_token_ids == tuple(sorted(special))

    made = (folder / "tokenizer.json").stat().st_mtime_ns
    assert build_tokenizer(corpus, folder, vocab_size=300).get_vocab() == tokenizer.get_vocab()
    assert (folder / "tokenizer.json").stat().st_mtime_ns == made
    assert len(build_tokenizer(corpus, folder, vocab_size=290)) == 290


def test_a_vocabulary_smaller_than_the_bytes_is_refused(library, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", library=library)
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        build_tokenizer(corpus, tmp_path / "tokenizer", vocab_size=259)
