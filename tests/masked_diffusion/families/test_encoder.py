"""The masked-LM encoders beyond what every family's conformance test asks."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig

from masked_diffusion import checkpoints
from masked_diffusion.families import FAMILIES, Denoiser
from masked_diffusion.families.modernbert import ModernBert
from tests.fixtures import modernbert
from tests.fixtures.table import family_fixtures

NAMES = ["bert", "bert-torch", "modernbert", "roberta", "xlm-roberta"]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / request.param
    family_fixtures()[request.param].build(folder)
    return folder


@pytest.fixture(scope="module", name="denoiser")
def loaded(folder: Path) -> Denoiser:
    return checkpoints.load_denoiser(str(folder))


@torch.no_grad()
def test_a_saved_folder_opens_as_a_masked_lm_with_the_same_logits(
    denoiser: Denoiser, tmp_path: Path
) -> None:
    checkpoints.save_denoiser(denoiser, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert (config["logit_alignment"], config["is_causal"]) == ("aligned", False)
    assert config["mask_token_id"] == denoiser.info.mask_token_id
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    ids_BL = torch.randint(5, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    expected_BLV = plain(input_ids=ids_BL).logits[..., : denoiser.info.vocab_size]
    logits_BLV = denoiser.logits(denoiser(ids_BL), suppress_mask_token=False)
    torch.testing.assert_close(logits_BLV, expected_BLV, atol=1e-5, rtol=1e-5)


def test_the_facts_come_from_config_and_tokenizer(denoiser: Denoiser) -> None:
    info, tokenizer = denoiser.info, denoiser.tokenizer
    assert tokenizer is not None
    assert info.mask_token_id == tokenizer.mask_token_id
    assert {tokenizer.cls_token_id, tokenizer.sep_token_id} <= set(info.special_token_ids)
    assert (info.alignment, info.attention, info.uses_time) == ("aligned", "full", False)
    assert info.num_invalid_leading_positions == 0


def test_the_head_is_the_tied_decoder_with_its_bias(denoiser: Denoiser) -> None:
    assert denoiser.head_bias is not None
    assert bool(denoiser.head_bias.any())
    assert denoiser.head_weight is denoiser.model.get_input_embeddings().weight


@torch.no_grad()
def test_the_longest_sequence_fits_and_no_longer_one(denoiser: Denoiser) -> None:
    length = denoiser.info.max_length
    assert denoiser(torch.full((1, length), 7)).shape[1] == length
    if denoiser.info.family != "modernbert":  # rotary positions have no table to leave
        with pytest.raises((IndexError, RuntimeError)):
            denoiser(torch.full((1, length + 1), 7))


def test_the_layer_pattern_finds_the_index_of_every_layer(denoiser: Denoiser) -> None:
    found = [re.search(denoiser.layer_pattern, name) for name in denoiser.model.state_dict()]
    indices = {int(match.group()) for match in found if match is not None}
    assert indices == set(range(denoiser.model.config.num_hidden_layers))


def test_gradients_reach_every_parameter(folder: Path) -> None:
    denoiser = checkpoints.load_denoiser(str(folder))
    denoiser.logits(denoiser(torch.tensor([[5, 6, 7, 8]]))).logsumexp(-1).sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name


def test_a_vocabulary_file_alone_is_a_tokenizer(tmp_path: Path) -> None:
    family_fixtures()["bert"].build(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").unlink()
    denoiser = checkpoints.load_denoiser(str(tmp_path / "bert"))
    assert denoiser.tokenizer is not None
    assert denoiser.tokenizer.convert_tokens_to_ids("[MASK]") == denoiser.info.mask_token_id


def test_a_decoder_is_refused() -> None:
    config = BertConfig(vocab_size=30, hidden_size=8, num_attention_heads=2, is_decoder=True)
    with pytest.raises(ValueError, match="is_decoder must be false, got true"):
        checkpoints.new_denoiser(config, None, seed=0, mask_token_id=4)


def _modernbert(layer_types: list[str]) -> ModernBert:
    config = ModernBertConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=len(layer_types),
        layer_types=layer_types,
        local_attention=4,
        pad_token_id=0,
    )
    denoiser = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=4).eval()
    assert isinstance(denoiser, FAMILIES["modernbert"])
    assert isinstance(denoiser, ModernBert)
    return denoiser


def test_local_layers_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="layer_types must name full_attention at least once"):
        _modernbert(["sliding_attention", "sliding_attention"])


@torch.no_grad()
def test_one_global_layer_carries_a_token_over_any_distance() -> None:
    denoiser = _modernbert(["full_attention", "sliding_attention"])
    ids_BL = torch.full((1, 24), 7)
    changed_BL = ids_BL.clone()
    changed_BL[0, -1] = 8
    moved_L = (denoiser(changed_BL) - denoiser(ids_BL))[0].abs().amax(-1)
    assert bool((moved_L > 1e-7).all())


@torch.no_grad()
def test_the_reference_depends_on_its_window(tmp_path: Path) -> None:
    """Else the conformance of the local layers would prove nothing."""
    modernbert.build(tmp_path / "narrow")
    ids_L = torch.arange(20, 33)
    narrow_LV = modernbert.reference_logits(tmp_path / "narrow", ids_L, 0.0)
    path = tmp_path / "narrow" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"local_attention": 8}), encoding="utf-8")
    wide_LV = modernbert.reference_logits(tmp_path / "narrow", ids_L, 0.0)
    assert float((wide_LV - narrow_LV).abs().max()) > 1e-2
