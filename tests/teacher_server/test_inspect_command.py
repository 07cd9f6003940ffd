import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.memory import loaded_bytes
from teacher_server import inspect_command, server
from tests import remote_code, tiny_models

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A checkpoint of its own for each test, whose rows divide into groups of 32."""
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer) + 20, hidden_size=64)
    path = tmp_path / "model"
    checkpoints.save_denoiser(checkpoints.new_denoiser(config, tiny_tokenizer, seed=0), path)
    return path


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with --json: exit code, what it printed, standard error."""

    def run(path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()  # progress bars of whoever saved the checkpoint
        code = server.main(["inspect", str(path), "--json", *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return run


def cut_after_header(path: Path) -> None:
    """Leaves a safetensors file its header and none of its data."""
    raw = path.read_bytes()
    path.write_bytes(raw[: 8 + int.from_bytes(raw[:8], "little")])


def split(folder: Path) -> tuple[str, str]:
    """Spreads the weights over two files with an index; names them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    owner = {name: files[".layers.1." in name] for name in tensors}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if owner[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_the_facts_are_those_of_the_loaded_denoiser(inspect: Any, folder: Path) -> None:
    code, facts, errors = inspect(folder)
    denoiser = checkpoints.load_denoiser(str(folder))
    assert (code, errors, facts["error"]) == (0, "", None)
    for name in ("family", "alignment", "attention", "block_length", "noise", "uses_time"):
        assert facts[name] == getattr(denoiser.info, name)
    for name in ("vocab_size", "padded_vocab_size", "hidden_size", "max_length"):
        assert facts[name] == getattr(denoiser.info, name)
    assert facts["num_parameters"] == denoiser.info.num_parameters
    assert facts["model_class"] == "Qwen2ForCausalLM"
    assert (facts["mask_token_id"], facts["mask_token_source"]) == (2, "config.mask_token_id")
    assert facts["alignment_source"] == "config"
    assert facts["special_token_ids"] == {"mask": 2, "pad": 0, "bos": 1, "eos": 0}
    assert facts["head"] == {"shape": [320, 64], "tied": True, "bias": False}
    assert facts["num_layers"] == 2
    assert facts["tokenizer"]["fingerprint"] == denoiser.info.tokenizer_fingerprint
    assert facts["tokenizer"]["chat_template"] is False
    assert facts["weights"]["num_bytes"] == (folder / WEIGHTS).stat().st_size
    assert facts["weights"]["dtypes"] == {"F32": denoiser.info.num_parameters}


def test_no_weight_is_read(inspect: Any, folder: Path) -> None:
    _, whole, _ = inspect(folder)
    cut_after_header(folder / WEIGHTS)
    code, facts, errors = inspect(folder)
    assert code == 1
    assert facts["weights"]["damaged_files"] == [WEIGHTS]
    assert facts["weights"]["missing_tensors"] == []
    assert "not all there" in errors
    differing = {name for name, value in facts.items() if value != whole[name]}
    assert differing == {"weights", "error"}


@pytest.mark.parametrize("raw", [b"", b"version https://git-lfs.github.com/spec/v1\noid"])
def test_what_is_no_safetensors_file_is_damaged(inspect: Any, folder: Path, raw: bytes) -> None:
    (folder / WEIGHTS).write_bytes(raw)
    code, facts, _ = inspect(folder)
    assert (code, facts["weights"]["damaged_files"]) == (1, [WEIGHTS])


def test_shards_are_read_together_and_a_missing_one_is_named(inspect: Any, folder: Path) -> None:
    _, whole, _ = inspect(folder)
    _, second = split(folder)
    code, facts, _ = inspect(folder)
    assert code == 0
    assert facts["weights"]["num_files"] == 2
    assert facts["weights"]["dtypes"] == whole["weights"]["dtypes"]
    (folder / second).unlink()
    code, facts, _ = inspect(folder)
    assert (code, facts["weights"]["missing_files"]) == (1, [second])
    missing = facts["weights"]["missing_tensors"]
    assert len(missing) == 12
    assert all(name.startswith("model.layers.1.") for name in missing)


def test_missing_tensors_are_those_that_loading_refuses(inspect: Any, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["stray.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    code, facts, _ = inspect(folder)
    assert code == 1
    assert facts["weights"]["missing_tensors"] == ["model.norm.weight"]
    assert facts["weights"]["unused_tensors"] == ["stray.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 tensors .* model\.norm\.weight first"):
        checkpoints.load_denoiser(str(folder))


def test_names_without_the_prefix_of_the_body_are_found_as_on_loading(
    inspect: Any, folder: Path
) -> None:
    tensors = load_file(folder / WEIGHTS)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / WEIGHTS, metadata={"format": "pt"})
    code, facts, _ = inspect(folder)
    checkpoints.load_denoiser(str(folder))
    assert (code, facts["weights"]["unused_tensors"]) == (0, [])


def test_the_weights_of_a_hub_id_are_not_fetched(
    inspect: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache laid out as the hub's client does, and no network."""
    commit = "0" * 40
    repository = tmp_path / "models--org--teacher"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, facts, _ = inspect(Path("org/teacher"))
    assert (code, facts["weights"]["num_files"]) == (0, 1)
    (snapshot / WEIGHTS).unlink()
    code, facts, _ = inspect(Path("org/teacher"))
    assert (code, facts["weights"]["missing_files"]) == (0, [WEIGHTS])
    assert facts["weights"]["missing_tensors"] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_memory_is_what_the_loaded_weights_take(
    inspect: Any, folder: Path, dtype: torch.dtype
) -> None:
    _, facts, _ = inspect(folder)
    denoiser = checkpoints.load_denoiser(str(folder), dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert facts["memory_bytes"][name] == loaded_bytes(denoiser.model)


def test_the_memory_of_int8_is_what_the_quantized_weights_take(inspect: Any, folder: Path) -> None:
    _, facts, _ = inspect(folder)
    denoiser = checkpoints.load_denoiser(str(folder), dtype=torch.bfloat16, quantization="int8")
    assert facts["memory_bytes"]["int8"] == loaded_bytes(denoiser.model)
    assert facts["memory_bytes"]["int4"] < facts["memory_bytes"]["int8"]


def test_the_options_of_the_server_change_the_answer(inspect: Any, folder: Path) -> None:
    _, facts, _ = inspect(folder, "--mask-token-id=7", "--alignment=aligned")
    assert (facts["mask_token_id"], facts["mask_token_source"]) == (7, "given")
    assert (facts["alignment"], facts["alignment_source"]) == ("aligned", "given")


def test_remote_code_needs_trust_and_leaves_the_alignment_open(
    inspect: Any, tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    folder = remote_code.write(tmp_path / "odd", tiny_denoiser)
    code, facts, _ = inspect(folder)
    assert code == 1
    assert "--trust-remote-code" in facts["error"]
    code, facts, _ = inspect(folder, "--trust-remote-code")
    assert (code, facts["model_class"], facts["alignment"]) == (0, "OddModel", None)
    assert facts["alignment_source"] == "unknown"


def test_the_self_test_is_run_and_reported(inspect: Any, folder: Path) -> None:
    code, facts, _ = inspect(folder, "--self-test")
    assert code == 0
    assert facts["self_test"]["probe"]["verdict"] == "inconclusive"
    assert 0 <= facts["self_test"]["batch_error"] < 1e-5


def test_a_failed_self_test_leaves_the_facts(
    inspect: Any, trained_aligned: Denoiser, tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    checkpoints.save_denoiser(trained_aligned, folder)
    code, facts, errors = inspect(folder, "--self-test", "--alignment=shifted")
    assert (code, facts["alignment"]) == (1, "shifted")
    assert "--alignment aligned" in errors


def test_the_comparison_tells_what_quantization_costs(inspect: Any, folder: Path) -> None:
    results = {}
    for name in ("int8", "int4"):
        code, facts, _ = inspect(folder, "--compare", f"--quantization={name}")
        assert code == 0
        results[name] = facts["comparison"]
    costs = results["int8"]
    assert costs["quantized"]["num_bytes"] < costs["exact"]["num_bytes"]
    errors = {name: result["error"] for name, result in results.items()}
    assert errors["int8"]["num_positions"] == errors["int4"]["num_positions"] > 500
    # Sixteen times coarser a grid: the divergence goes with the square of its step.
    assert 0 < 10 * errors["int8"]["kl_nats"] < errors["int4"]["kl_nats"]
    for error in errors.values():
        assert 0 < error["kl_standard_error"] < error["kl_nats"]
    agreement = {name: error["top1_agreement_fraction"] for name, error in errors.items()}
    assert agreement["int4"] < agreement["int8"] <= 1


def test_the_text_names_every_fact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "mask id       2 (from config.mask_token_id)" in lines
    assert "head          [320, 64], tied to the embedding, no bias" in lines
    assert "vocabulary    300, padded to 320" in lines


def test_errors_are_one_line_and_one(inspect: Any, tmp_path: Path) -> None:
    code, facts, errors = inspect(tmp_path / "none")
    assert (code, errors.count("\n")) == (1, 1)
    assert "no such folder" in facts["error"]


@pytest.mark.parametrize("arguments", [[], ["x", "--compare"], ["x", "--num-threads=-1"]])
def test_misuse_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        inspect_command.main(arguments)
    assert stopped.value.code == 2
    assert "usage: teacher-server inspect" in capsys.readouterr().err
