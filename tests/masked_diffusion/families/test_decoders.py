"""What is special in a decoder family; what holds for all of them is in test_conformance.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Tokenizer, Qwen2Tokenizer

from masked_diffusion import checkpoints
from masked_diffusion.families import FAMILIES, Denoiser
from tests.fixtures import a2d, conformance, diffugpt, diffullama, dream, llada, open_dcoder
from tests.fixtures.fixture import FamilyFixture

ALL = {
    fixture.name: fixture
    for module in (a2d, diffugpt, diffullama, dream, llada, open_dcoder)
    for fixture in module.FIXTURES
}
Load = Callable[..., tuple[Denoiser, Path]]


@pytest.fixture(name="load")
def loader(tmp_path: Path) -> Load:
    def load(name: str, **options: object) -> tuple[Denoiser, Path]:
        fixture: FamilyFixture = ALL[name]
        folder = tmp_path / name
        fixture.build(folder)
        return checkpoints.load_denoiser(str(folder), **{**fixture.load_options, **options}), folder

    return load


def _rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Exports ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("a2d-llama", "llama"),
        ("a2d-qwen2", "qwen2"),
        ("a2d-qwen3", "qwen3"),
        ("diffucoder", "qwen2"),
        ("diffugpt-m", "gpt2"),
        ("diffullama-wrapper", "llama"),
        ("dream", "qwen2"),
        ("llada", "llama"),
        ("open-dcoder", "qwen2"),
        ("qwen3", "qwen3"),
    ],
)
@torch.no_grad()
def test_an_export_opens_with_plain_transformers_and_is_bidirectional_there(
    load: Load, tmp_path: Path, name: str, model_type: str
) -> None:
    denoiser, _ = load(name)
    exported = tmp_path / "exported"
    checkpoints.save_denoiser(denoiser, exported)
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == model_type
    assert config["logit_alignment"] == denoiser.info.alignment
    assert config["is_causal"] is False
    assert "auto_map" not in (exported / "config.json").read_text()
    assert "auto_map" not in (exported / "tokenizer_config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(exported)
    (state,) = conformance.masked_states(denoiser, [12])
    raw_LV = plain(input_ids=state[None]).logits[0]
    if denoiser.info.alignment == "shifted":
        raw_LV = torch.cat([raw_LV[:1], raw_LV[:-1]])
    ours_LV = denoiser.logits(denoiser.hidden_states(state[None]), suppress_mask_token=False)[0]
    # The same numbers through a product of other width: the last bits may differ.
    torch.testing.assert_close(ours_LV, raw_LV[:, : denoiser.info.vocab_size], atol=1e-5, rtol=1e-5)


# Mask, vocabulary, alignment ----------------------------------------------------


def test_open_dcoders_mask_is_an_added_token_and_the_padded_embedding_stays_tied(
    load: Load,
) -> None:
    denoiser, folder = load("open-dcoder")
    assert "mask" not in (folder / "config.json").read_text()
    assert "mask_token" not in (folder / "special_tokens_map.json").read_text()
    assert denoiser.tokenizer is not None
    assert denoiser.info.mask_token_id == denoiser.tokenizer.convert_tokens_to_ids("<M>")
    assert denoiser.info.vocab_size == len(denoiser.tokenizer)
    assert denoiser.info.padded_vocab_size == open_dcoder.SHAPE.vocab_size
    assert denoiser.head_weight.shape[0] == open_dcoder.SHAPE.vocab_size
    assert denoiser.head_weight is denoiser.model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["diffullama", "diffugpt-s"])
def test_a_mask_that_nothing_names_must_be_given(load: Load, name: str) -> None:
    with pytest.raises(ValueError, match=r"has no mask token.*pass mask_token_id"):
        load(name, mask_token_id=None)


def test_the_vocabulary_of_diffugpt_is_its_embeddings(load: Load) -> None:
    denoiser, folder = load("diffugpt-m")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 282
    assert denoiser.info.padded_vocab_size == 284
    assert denoiser.info.mask_token_id == 282
    assert isinstance(denoiser.tokenizer, GPT2Tokenizer)


def test_alignment_follows_the_publication_and_gives_way_to_the_users(load: Load) -> None:
    defaults = {family.family: family.default_alignment for family in FAMILIES.values()}
    shifted = ("Dream", "gpt2", "llama", "qwen2")
    aligned = ("a2d-llama", "a2d-qwen2", "a2d-qwen3", "llada", "qwen3")
    assert all(defaults[name] == "shifted" for name in shifted)
    assert all(defaults[name] == "aligned" for name in aligned)
    # Random weights predict nothing, so the self-test cannot tell.
    denoiser, _ = load("qwen3", alignment="shifted")
    assert denoiser.info.alignment == "shifted"


# Tokenizers ---------------------------------------------------------------------


def test_dreams_tokenizer_loads_without_its_code_and_keeps_tokens_and_chat_template(
    load: Load, tmp_path: Path
) -> None:
    denoiser, folder = load("dream")
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    assert stated["tokenizer_class"] == "DreamTokenizer"
    tokenizer = denoiser.tokenizer
    assert isinstance(tokenizer, Qwen2Tokenizer)
    for token, index in json.loads((folder / "added_tokens.json").read_text()).items():
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer(token)["input_ids"] == [index]
    for role in ("bos_token", "eos_token", "mask_token", "pad_token"):
        assert getattr(tokenizer, role) == stated[role]
    chat = [{"role": "user", "content": "add two numbers"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nadd two numbers<|im_end|>\n<|im_start|>assistant\n"
    checkpoints.save_denoiser(denoiser, tmp_path / "saved")
    again = checkpoints.load_denoiser(str(tmp_path / "saved")).tokenizer
    assert again is not None
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_lladas_chat_template_survives(load: Load) -> None:
    denoiser, _ = load("llada")
    assert denoiser.tokenizer is not None
    chat = [{"role": "user", "content": " hi "}]
    assert denoiser.tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_diffucoder_reports_its_tokenizers_pad(load: Load) -> None:
    denoiser, folder = load("diffucoder")
    stated = json.loads((folder / "config.json").read_text())["pad_token_id"]
    assert denoiser.tokenizer is not None
    assert denoiser.info.pad_token_id == denoiser.tokenizer.convert_tokens_to_ids("<|dlm_pad|>")
    assert denoiser.info.pad_token_id != stated


# Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_type", "gelu"),
        ("alibi", True),
        ("attention_layer_norm", True),
        ("block_type", "sequential"),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("layer_norm_type", "default"),
        ("rope", False),
        ("scale_logits", True),
    ],
)
def test_a_llada_that_is_no_llama_is_refused_by_field(
    tmp_path: Path, field: str, value: object
) -> None:
    llada.build(tmp_path)
    _rewrite_config(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=rf"config\.{field} is {value!r}, but LLaDA"):
        checkpoints.load_denoiser(str(tmp_path))


def test_a_llada_without_a_size_is_refused(tmp_path: Path) -> None:
    llada.build(tmp_path)
    _rewrite_config(tmp_path, d_model=None)
    with pytest.raises(ValueError, match=r"config\.d_model is missing"):
        checkpoints.load_denoiser(str(tmp_path))


def test_a_dream_that_attends_by_blocks_is_refused(tmp_path: Path) -> None:
    dream.build_dream(tmp_path)
    _rewrite_config(tmp_path, block_size=32)
    with pytest.raises(ValueError, match=r"config\.block_size is 32.*attends by blocks"):
        checkpoints.load_denoiser(str(tmp_path))


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    llada.build(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.transformer.blocks.1.ff_out.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*layers\.1\.mlp\.down_proj"):
        checkpoints.load_denoiser(str(tmp_path))
