import dataclasses

import pytest
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import find_mask_token_id
from tests import tiny_models


def test_the_facts_of_the_tiny_checkpoint(
    tiny_denoiser: Denoiser, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    info = tiny_denoiser.info
    assert (info.family, info.alignment, info.attention) == ("qwen2", "shifted", "full")
    assert info.mask_token_id == tiny_tokenizer.convert_tokens_to_ids("<M>")
    assert info.pad_token_id == info.eos_token_id == tiny_tokenizer.eos_token_id
    assert info.bos_token_id == tiny_tokenizer.bos_token_id
    assert info.special_token_ids == (0, 1, 2)
    assert info.vocab_size == len(tiny_tokenizer)
    assert info.padded_vocab_size == len(tiny_tokenizer) + 20
    assert (info.hidden_size, info.max_length) == (32, 256)
    assert info.num_parameters == sum(p.numel() for p in tiny_denoiser.parameters())
    assert info.tokenizer_fingerprint == checkpoints.tokenizer_fingerprint(tiny_tokenizer)


def test_without_a_tokenizer_the_vocabulary_is_the_embedding() -> None:
    config = tiny_models.qwen2_config(vocab_size=64)
    config.eos_token_id = [5, 6]
    info = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=9).info
    assert (info.vocab_size, info.padded_vocab_size) == (64, 64)
    assert info.tokenizer_fingerprint == ""
    assert info.eos_token_id == 5
    assert info.pad_token_id is None
    assert info.special_token_ids == (5, 9)


def test_the_mask_id_is_looked_for_in_order(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = tiny_models.qwen2_config(vocab_size=400)
    assert find_mask_token_id(config, tiny_tokenizer, name="x") == 2
    config.mask_token_id = 7
    assert find_mask_token_id(config, tiny_tokenizer, name="x") == 7
    assert find_mask_token_id(config, tiny_tokenizer, name="x", mask_token_id=8) == 8


def test_an_added_mask_token_is_found_though_the_tokenizer_does_not_declare_it() -> None:
    tokenizer = tiny_models.train_tokenizer()
    tokenizer.mask_token = None
    config = tiny_models.qwen2_config(vocab_size=400)
    assert find_mask_token_id(config, tokenizer, name="x") == 2


def test_an_undeclared_mask_token_is_special_and_counts_for_the_vocabulary() -> None:
    config = tiny_models.qwen2_config(vocab_size=400)
    tokenizer = tiny_models.train_tokenizer()
    info = checkpoints.new_denoiser(config, tokenizer, seed=0, mask_token_id=350).info
    assert info.vocab_size == 351
    assert 350 in info.special_token_ids


def test_a_missing_mask_id_says_how_to_mend_it() -> None:
    config = tiny_models.qwen2_config(vocab_size=64)
    with pytest.raises(ValueError, match=r"x has no mask token: .*pass mask_token_id"):
        find_mask_token_id(config, None, name="x")
    with pytest.raises(ValueError, match=r"must lie in \[0, 64\).*got 64"):
        find_mask_token_id(config, None, name="x", mask_token_id=64)


def test_a_tokenizer_too_large_for_the_embedding_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer) - 1)
    with pytest.raises(ValueError, match="has ids up to 299, but the embedding has only 299 rows"):
        checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)


def test_an_unknown_alignment_is_refused() -> None:
    config = tiny_models.qwen2_config(vocab_size=64)
    config.logit_alignment = "sideways"
    with pytest.raises(ValueError, match="must be one of shifted, aligned, got 'sideways'"):
        checkpoints.new_denoiser(config, None, seed=0, mask_token_id=9)


def test_info_is_immutable(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_denoiser.info.vocab_size = 1  # type: ignore[misc]
