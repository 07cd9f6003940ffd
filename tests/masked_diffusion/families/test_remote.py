import json
from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.remote import Remote
from tests import remote_code


@pytest.fixture(autouse=True)
def modules_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where transformers puts code that it imports: not the user's own cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))


def _ids() -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.tensor([[5, 6, 2, 2, 9, 8], [7, 2, 5, 0, 0, 0]])
    return ids_BL, torch.tensor([[True] * 6, [True] * 3 + [False] * 3])


def test_unknown_code_is_refused_unless_trusted(trained_aligned: Denoiser, tmp_path: Path) -> None:
    folder = remote_code.write(tmp_path / "odd", trained_aligned)
    with pytest.raises(ValueError, match=r"unknown model_type 'odd'.*brings code of its own"):
        checkpoints.load_denoiser(str(folder))
    assert not (tmp_path / "hf").exists(), "nothing was imported"


@pytest.mark.parametrize("honours_padding", [True, False])
@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
def test_trusted_code_is_served_as_our_own_family_and_its_alignment_found(
    alignment: str,
    honours_padding: bool,
    trained_aligned: Denoiser,
    trained_shifted: Denoiser,
    tmp_path: Path,
) -> None:
    ours = {"aligned": trained_aligned, "shifted": trained_shifted}[alignment]
    folder = remote_code.write(tmp_path / "odd", ours, honours_padding=honours_padding)
    remote = checkpoints.load_denoiser(str(folder), trust_remote_code=True)
    assert isinstance(remote, Remote)
    assert (remote.info.family, remote.info.alignment) == ("remote", alignment)
    assert remote.takes_padding == honours_padding
    ids_BL, mask_BL = _ids()
    with torch.no_grad():
        expected_BLD, actual_BLD = ours(ids_BL, mask_BL), remote(ids_BL, mask_BL)
        torch.testing.assert_close(actual_BLD[mask_BL], expected_BLD[mask_BL], atol=1e-5, rtol=0)
        logits = remote.logits(actual_BLD[mask_BL])
        torch.testing.assert_close(logits, ours.logits(expected_BLD[mask_BL]), atol=1e-4, rtol=0)
    assert torch.equal(remote.head_weight, ours.head_weight)


def test_an_alignment_that_cannot_be_found_must_be_given(
    tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    folder = remote_code.write(tmp_path / "odd", tiny_denoiser)
    with pytest.raises(ValueError, match=r"inconclusive.*give --alignment aligned"):
        checkpoints.load_denoiser(str(folder), trust_remote_code=True)
    remote = checkpoints.load_denoiser(str(folder), trust_remote_code=True, alignment="shifted")
    assert remote.info.alignment == "shifted"


def test_logits_that_are_not_the_heads_product_are_refused(
    tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    folder = remote_code.write(tmp_path / "odd", tiny_denoiser, scale=0.5)
    with pytest.raises(ValueError, match="are not its head's product"):
        checkpoints.load_denoiser(str(folder), trust_remote_code=True, alignment="aligned")


def test_trust_without_code_is_refused(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    folder = remote_code.write(tmp_path / "odd", tiny_denoiser)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="brings no code that could be run: auto_map"):
        checkpoints.load_denoiser(str(folder), trust_remote_code=True)
