from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import self_test
from masked_diffusion.quantization import get_quantization, quantizable_modules
from tests import tiny_models

QUANTIZED = "qdata"
"""Where a tensor of torchao has its integers."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    config = tiny_models.qwen2_config(
        vocab_size=len(tiny_tokenizer), hidden_size=64, tie_word_embeddings=request.param
    )
    path = tmp_path_factory.mktemp("quantization") / "model"
    checkpoints.save_denoiser(checkpoints.new_denoiser(config, tiny_tokenizer, seed=0), path)
    return path


@pytest.mark.parametrize(("name", "max_levels"), [("int8", 256), ("int4", 16)])
def test_the_body_is_quantized_and_the_head_is_not(
    name: str, max_levels: int, folder: Path
) -> None:
    plain = checkpoints.load_denoiser(str(folder))
    quantized = checkpoints.load_denoiser(str(folder), quantization=name)
    assert torch.equal(quantized.head_weight, plain.head_weight)
    embeddings = [
        denoiser.model.state_dict()["model.embed_tokens.weight"] for denoiser in (plain, quantized)
    ]
    assert torch.equal(*embeddings)
    assert checkpoints.head_digest(quantized) == checkpoints.head_digest(plain)
    modules = quantizable_modules(quantized)
    assert len(modules) == 14
    for module_name, linear in modules.items():
        weight = linear.weight.dequantize()
        exact = plain.model.get_submodule(module_name).weight
        assert isinstance(exact, torch.Tensor)
        assert not torch.equal(weight, exact)
        # Half a step of the grid over the range of a row; asymmetric roundings may take a whole.
        span = exact.max(-1).values - exact.min(-1).values
        limit = 2 * exact.abs().amax(-1) / (max_levels - 1) + span / (max_levels - 1)
        assert bool(((weight - exact).abs().amax(-1) <= limit).all())
        assert len(getattr(linear.weight, QUANTIZED).unique()) <= max_levels


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_revision_of_quantized_weights_is_their_own_and_repeats(
    name: str, folder: Path
) -> None:
    plain = checkpoints.load_denoiser(str(folder))
    one, again = (checkpoints.load_denoiser(str(folder), quantization=name) for _ in range(2))
    assert checkpoints.weights_digest(one) == checkpoints.weights_digest(again)
    assert checkpoints.weights_digest(one) != checkpoints.weights_digest(plain)
    assert one.info == plain.info


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_forward_is_that_of_the_rounded_weights(name: str, folder: Path) -> None:
    quantized = checkpoints.load_denoiser(str(folder), quantization=name)
    rounded = checkpoints.load_denoiser(str(folder))
    ids_BL = torch.tensor([[5, 6, 2, 2, 9]])
    with torch.no_grad():
        plain_BLD = rounded(ids_BL)
        for module_name, linear in quantizable_modules(quantized).items():
            rounded.model.get_parameter(f"{module_name}.weight").copy_(linear.weight.dequantize())
        torch.testing.assert_close(quantized(ids_BL), rounded(ids_BL), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(plain_BLD, rounded(ids_BL), atol=1e-4)


def test_a_bfloat16_teacher_is_quantized_too(folder: Path) -> None:
    quantized = checkpoints.load_denoiser(str(folder), dtype=torch.bfloat16, quantization="int8")
    assert quantized.head_weight.dtype == torch.bfloat16
    self_test(quantized)


@pytest.mark.parametrize("name", ["bnb-int8", "bnb-nf4", "fp8"])
def test_what_needs_a_gpu_is_refused_on_a_cpu(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"'{name}' needs a GPU.*take one of int4, int8"):
        checkpoints.load_denoiser(str(folder), quantization=name)


def test_an_unknown_quantization_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'int3'; known: bnb-int8, bnb-nf4, fp8, int4, int8"):
        get_quantization("int3", torch.device("cpu"))


def test_rows_that_do_not_divide_into_groups_are_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), hidden_size=40)
    checkpoints.save_denoiser(
        checkpoints.new_denoiser(config, tiny_tokenizer, seed=0), tmp_path / "odd"
    )
    with pytest.raises(
        ValueError, match=r"multiples of 32, but .*q_proj has rows of 40; take int8"
    ):
        checkpoints.load_denoiser(str(tmp_path / "odd"), quantization="int4")


def test_quantized_weights_are_not_saved(folder: Path, tmp_path: Path) -> None:
    quantized = checkpoints.load_denoiser(str(folder), quantization="int8")
    with pytest.raises(ValueError, match="are for serving and are not saved"):
        checkpoints.save_denoiser(quantized, tmp_path / "out")
