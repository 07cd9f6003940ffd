import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForMaskedLM

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.mdlm import noise_level
from masked_diffusion.families.mdlm_config import MdlmConfig
from masked_diffusion.families.mdlm_model import MdlmForMaskedLM
from tests.fixtures import mdlm


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mdlm") / "time"
    mdlm.build(folder, time_conditioning=True)
    return folder


@pytest.fixture(scope="module")
def denoiser(published: Path) -> Denoiser:
    return checkpoints.load_denoiser(str(published))


def test_the_last_row_is_the_mask_and_no_remote_code_is_named(denoiser: Denoiser) -> None:
    assert denoiser.tokenizer is not None
    assert denoiser.info.mask_token_id == len(denoiser.tokenizer)
    assert (
        denoiser.info.vocab_size == denoiser.info.padded_vocab_size == len(denoiser.tokenizer) + 1
    )
    assert denoiser.info.uses_time
    assert denoiser.info.alignment == "aligned"
    assert denoiser.info.noise == "absorbing"
    assert denoiser.info.hidden_size == mdlm.WIDTH
    assert denoiser.info.max_length == mdlm.LENGTH
    assert not hasattr(denoiser.model.config, "auto_map")


def test_an_export_opens_with_the_auto_classes_under_the_published_names(
    published: Path, denoiser: Denoiser, tmp_path: Path
) -> None:
    checkpoints.save_denoiser(denoiser, tmp_path / "saved")
    model, config = (
        auto.from_pretrained(tmp_path / "saved") for auto in (AutoModelForMaskedLM, AutoConfig)
    )
    assert isinstance(model, MdlmForMaskedLM)
    assert isinstance(config, MdlmConfig)
    with (
        safe_open(published / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as after,
    ):
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            assert torch.equal(before.get_tensor(name), after.get_tensor(name)), name
    ids_BL = torch.tensor([[3, 5, denoiser.info.mask_token_id]])
    times_B = torch.tensor([0.3])
    with torch.no_grad():
        logits_BLV = model(ids_BL, timesteps=noise_level(times_B)).logits
        expected_BLV = denoiser.logits(denoiser(ids_BL, times_B=times_B), suppress_mask_token=False)
    torch.testing.assert_close(logits_BLV, expected_BLV)


@torch.no_grad()
def test_each_row_of_a_batch_has_its_own_time(denoiser: Denoiser) -> None:
    ids_BL = torch.tensor([[3, 5, 7]]).expand(2, -1)
    apart_BLD = denoiser(ids_BL, times_B=torch.tensor([0.1, 0.9]))
    alone_BLD = denoiser(ids_BL[:1], times_B=torch.tensor([0.9]))
    torch.testing.assert_close(apart_BLD[1:], alone_BLD)
    assert float((apart_BLD[0] - apart_BLD[1]).abs().max()) > 1e-3


def test_a_time_conditioned_network_refuses_to_guess_the_time(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="times_B must be given"):
        denoiser(torch.tensor([[3, 5, 7]]))
    with pytest.raises(ValueError, match="timesteps must be given"):
        denoiser.model(torch.tensor([[3, 5, 7]]))


@torch.no_grad()
def test_without_time_conditioning_the_time_changes_nothing(tmp_path: Path) -> None:
    mdlm.build(tmp_path / "untimed", time_conditioning=False)
    untimed = checkpoints.load_denoiser(str(tmp_path / "untimed"))
    ids_BL = torch.tensor([[3, 5, 7]])
    assert not untimed.info.uses_time
    assert torch.equal(untimed(ids_BL), untimed(ids_BL, times_B=torch.tensor([0.9])))


def test_a_new_network_begins_as_published_with_closed_gates() -> None:
    config = MdlmConfig(vocab_size=11, hidden_dim=8, cond_dim=6, n_blocks=2, n_heads=2)
    first, second = (checkpoints.new_denoiser(config, None, seed=seed) for seed in (0, 1))
    assert first.info.mask_token_id == 10
    assert first.info.tokenizer_fingerprint == ""
    for name, tensor in first.model.state_dict().items():
        closed = "adaLN_modulation" in name or "output_layer.linear" in name
        assert bool(tensor.any()) != closed, name
    assert not torch.equal(
        first.model.state_dict()["backbone.blocks.1.mlp.0.weight"],
        second.model.state_dict()["backbone.blocks.1.mlp.0.weight"],
    )


def test_bfloat16_weights_keep_exact_rotary_angles(published: Path, denoiser: Denoiser) -> None:
    half = checkpoints.load_denoiser(str(published), dtype=torch.bfloat16)
    ids_BL = torch.arange(40)[None]
    times_B = torch.tensor([0.5])
    with torch.no_grad():
        rough_BLD = half(ids_BL, times_B=times_B)
        exact_BLD = denoiser(ids_BL, times_B=times_B)
    assert rough_BLD.dtype == torch.bfloat16
    # Some roundings to 8 bits in each of three blocks.
    torch.testing.assert_close(rough_BLD.float(), exact_BLD, atol=0.2, rtol=0.05)


def test_a_causal_baseline_is_refused(published: Path, tmp_path: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"causal": True}))
    with pytest.raises(ValueError, match="causal must be false"):
        checkpoints.load_denoiser(str(tmp_path))


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    config = MdlmConfig(vocab_size=11, hidden_dim=6, n_heads=2)
    with pytest.raises(ValueError, match="multiple of twice n_heads, got 6 and 2"):
        checkpoints.new_denoiser(config, None, seed=0)
