import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from tests import tiny_models

# Numbers, tabs, line ends and a combining accent: where splitting rules differ.
AWKWARD_TEXT = "def f(x):\n\n    return <M>  12345\t\te\u0301 it's IT'S\r\n x"


def _copy(folder: Path, to: Path, *, without: str = "") -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.name != without:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_save_and_load_is_exact(tiny_denoiser: Denoiser, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    checkpoints.save_denoiser(tiny_denoiser, folder)
    again = checkpoints.load_denoiser(str(folder))
    assert checkpoints.weights_digest(again) == checkpoints.weights_digest(tiny_denoiser)
    ids_BL = torch.tensor([[5, 6, 2, 2, 9]])
    with torch.no_grad():
        assert torch.equal(again(ids_BL), tiny_denoiser(ids_BL))
    assert not again.training
    for field in ("mask_token_id", "alignment", "vocab_size", "tokenizer_fingerprint"):
        assert getattr(again.info, field) == getattr(tiny_denoiser.info, field)
    assert again.info.name == str(folder)


def test_a_folder_says_what_a_reader_cannot_guess(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert config["is_causal"] is False
    assert config["mask_token_id"] == 2
    assert config["logit_alignment"] == "shifted"
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_the_tokenizer_encodes_alike_after_loading(
    tiny_denoiser: Denoiser, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert tiny_denoiser.tokenizer is not None
    encoded = tiny_tokenizer(AWKWARD_TEXT)["input_ids"]
    assert tiny_denoiser.tokenizer(AWKWARD_TEXT)["input_ids"] == encoded
    assert tiny_denoiser.tokenizer.decode(encoded) == AWKWARD_TEXT


def test_a_causal_config_is_made_bidirectional(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As Open-dCoder's, which says nothing of causality, alignment or mask in its config."""
    folder = _copy(tiny_checkpoint, tmp_path / "plain")
    _edit_config(folder, is_causal=None, logit_alignment=None, mask_token_id=None)
    denoiser = checkpoints.load_denoiser(str(folder))
    assert denoiser.model.config.is_causal is False
    assert (denoiser.info.mask_token_id, denoiser.info.alignment) == (2, "shifted")


def test_the_dtype_is_as_saved_unless_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = checkpoints.load_denoiser(str(tiny_checkpoint), dtype=torch.bfloat16)
    assert half.head_weight.dtype == torch.bfloat16
    checkpoints.save_denoiser(half, tmp_path / "half")
    as_saved = checkpoints.load_denoiser(str(tmp_path / "half"))
    assert as_saved.head_weight.dtype == torch.bfloat16
    assert checkpoints.weights_digest(as_saved) == checkpoints.weights_digest(half)
    full = checkpoints.load_denoiser(str(tmp_path / "half"), dtype=torch.float32)
    assert full.head_weight.dtype == torch.float32


def test_a_folder_without_tokenizer_needs_a_mask_id(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_checkpoint, tmp_path / "bare", without="tokenizer.json")
    (folder / "tokenizer_config.json").unlink()
    denoiser = checkpoints.load_denoiser(str(folder))
    assert denoiser.tokenizer is None
    assert (denoiser.info.vocab_size, denoiser.info.tokenizer_fingerprint) == (320, "")
    checkpoints.save_denoiser(denoiser, tmp_path / "again")
    assert checkpoints.load_denoiser(str(tmp_path / "again")).tokenizer is None

    _edit_config(folder, mask_token_id=None)
    with pytest.raises(ValueError, match="has no mask token"):
        checkpoints.load_denoiser(str(folder))
    assert checkpoints.load_denoiser(str(folder), mask_token_id=4).info.mask_token_id == 4


def test_new_denoisers_follow_their_seed_and_leave_the_global_one_alone() -> None:
    config = tiny_models.qwen2_config(vocab_size=300)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (
        checkpoints.weights_digest(
            checkpoints.new_denoiser(config, None, seed=seed, mask_token_id=2)
        )
        for seed in (0, 0, 1)
    )
    assert torch.rand(1) == expected
    assert one == same != other
    assert not hasattr(config, "mask_token_id"), "the caller's config is not changed"


@pytest.mark.parametrize("missing", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=f"no such folder: {missing}; give the path"):
        checkpoints.load_denoiser(missing)


def test_a_missing_folder_in_an_existing_one_does_not_ask_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no such folder: runs/teacher"):
        checkpoints.load_denoiser("runs/teacher")


def test_an_unreadable_hub_id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"cannot read the model 'nobody/nothing'.*check the spell"
    ):
        checkpoints.load_denoiser("nobody/nothing")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        checkpoints.load_denoiser(str(tmp_path))


def test_an_unknown_model_type_names_the_known_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_checkpoint, tmp_path / "odd")
    _edit_config(folder, model_type="perceptron")
    with pytest.raises(ValueError, match=r"unknown model_type 'perceptron'; known: .*qwen2"):
        checkpoints.load_denoiser(str(folder))


def test_pickled_weights_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_checkpoint, tmp_path / "pickled", without="model.safetensors")
    torch.save(load_file(tiny_checkpoint / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no readable safetensors weights; pickled checkpoints"):
        checkpoints.load_denoiser(str(folder))


def test_missing_tensors_are_not_made_up(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_checkpoint, tmp_path / "holed")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*model\.layers\.1\.mlp\.up_proj"):
        checkpoints.load_denoiser(str(folder))


def test_saving_replaces_a_checkpoint_and_nothing_else(
    tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    for _ in range(2):
        checkpoints.save_denoiser(tiny_denoiser, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing temporary is left"

    (folder / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"'notes\.txt' is not part of a checkpoint"):
        checkpoints.save_denoiser(tiny_denoiser, folder)
    assert (folder / "notes.txt").read_text() == "precious"

    with pytest.raises(ValueError, match="it is a file"):
        checkpoints.save_denoiser(tiny_denoiser, folder / "config.json")
