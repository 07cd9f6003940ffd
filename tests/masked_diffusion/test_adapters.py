from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from masked_diffusion import checkpoints
from tests import tiny_models

# peft 0.21 asks transformers by a name that 5.23 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

RANK = 4
ALPHA = 8


def _adapter(folder: Path, base: Path, *, seed: int, targets: tuple[str, ...] = ("q_proj",)) -> str:
    """An adapter with random weights, saved by peft."""
    torch.manual_seed(seed)
    weights = checkpoints.load_denoiser(str(base)).model
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(targets), init_lora_weights=False
    )
    get_peft_model(weights, config).save_pretrained(str(folder))
    return str(folder)


def test_adapters_are_merged_in_order_as_their_formula_says(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapters = [
        _adapter(tmp_path / "one", tiny_checkpoint, seed=1),
        _adapter(tmp_path / "two", tiny_checkpoint, seed=2, targets=("q_proj", "up_proj")),
    ]
    base = checkpoints.load_denoiser(str(tiny_checkpoint))
    merged = checkpoints.load_denoiser(str(tiny_checkpoint), adapters=adapters)
    expected = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    for adapter in adapters:
        tensors = load_file(f"{adapter}/adapter_model.safetensors")
        for name, left in tensors.items():
            if "lora_A" in name:
                right = tensors[name.replace("lora_A", "lora_B")]
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                expected[target] += ALPHA / RANK * (right @ left)
    actual = merged.model.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-6, rtol=1e-5)
    assert checkpoints.weights_digest(merged) != checkpoints.weights_digest(base)

    checkpoints.save_denoiser(merged, tmp_path / "merged")
    again = checkpoints.load_denoiser(str(tmp_path / "merged"))
    assert checkpoints.weights_digest(again) == checkpoints.weights_digest(merged)


def _wide(tmp_path: Path, **changes: object) -> Path:
    config = tiny_models.qwen2_config(vocab_size=300, **changes)  # type: ignore[arg-type]
    folder = tmp_path / "base"
    checkpoints.save_denoiser(
        checkpoints.new_denoiser(config, None, seed=0, mask_token_id=2), folder
    )
    return folder


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_layers": 3}, {"num_layers": 1}])
def test_an_adapter_of_another_base_is_refused(
    changes: dict[str, int], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = _adapter(tmp_path / "adapter", tiny_checkpoint, seed=0)
    with pytest.raises(ValueError, match=r"adapter .* does not fit this model: .*trained on"):
        checkpoints.load_denoiser(str(_wide(tmp_path, **changes)), adapters=[adapter])


def test_a_module_that_is_not_there_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = Path(_adapter(tmp_path / "adapter", tiny_checkpoint, seed=0))
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "ff_proj"))
    with pytest.raises(ValueError, match=r"does not fit this model: Target modules .*ff_proj"):
        checkpoints.load_denoiser(str(tiny_checkpoint), adapters=[str(adapter)])


def test_pickled_and_missing_adapters_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = Path(_adapter(tmp_path / "adapter", tiny_checkpoint, seed=0))
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors.*pickled ones"):
        checkpoints.load_denoiser(str(tiny_checkpoint), adapters=[str(adapter)])
    with pytest.raises(ValueError, match="cannot read the adapter"):
        checkpoints.load_denoiser(str(tiny_checkpoint), adapters=["nobody/nothing"])


def test_adapters_and_quantization_are_not_combined(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter", tiny_checkpoint, seed=0)
    with pytest.raises(ValueError, match="merged"):
        checkpoints.load_denoiser(str(tiny_checkpoint), adapters=[adapter], quantization="int8")
