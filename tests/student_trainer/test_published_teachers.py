"""Students that start from teachers under their published names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer.student import StudentSpec, build_student
from tests.fixtures import a2d, block_diffusion, conformance, diffugpt, dream, llada
from tests.fixtures.fixture import FamilyFixture

FIXTURES = {
    fixture.name: fixture
    for module in (a2d, diffugpt, dream, llada)
    for fixture in module.FIXTURES
    if "mask_token_id" not in fixture.load_options
}


@pytest.fixture(params=list(FIXTURES), name="teacher")
def published_teacher(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Denoiser]:
    fixture: FamilyFixture = FIXTURES[request.param]
    fixture.build(tmp_path / "teacher")
    folder = str(tmp_path / "teacher")
    return folder, checkpoints.load_denoiser(folder)


def _student(teacher: str, **fields: Any) -> Denoiser:
    spec = StudentSpec(teacher_model_path=teacher, init_from_teacher=True, **fields)
    return build_student(spec, device="cpu", dtype=None).eval()


@torch.no_grad()
def _logits(denoiser: Denoiser, state: Tensor) -> Tensor:
    return denoiser.logits(denoiser.hidden_states(state[None]))


def test_a_student_of_the_same_depth_gives_the_teachers_logits(
    teacher: tuple[str, Denoiser],
) -> None:
    folder, denoiser = teacher
    student = _student(folder)
    (state,) = conformance.masked_states(denoiser, [12])
    assert student.info.alignment == denoiser.info.alignment
    assert student.info.mask_token_id == denoiser.info.mask_token_id
    assert torch.equal(_logits(student, state), _logits(denoiser, state))


def test_chosen_layers_are_copied_and_exported(
    teacher: tuple[str, Denoiser], tmp_path: Path
) -> None:
    folder, denoiser = teacher
    student = _student(folder, teacher_layers=(1,))
    pattern = "h" if denoiser.model.config.model_type == "gpt2" else "layers"
    theirs = denoiser.model.state_dict()
    for name, tensor in student.model.state_dict().items():
        source = name.replace(f".{pattern}.0.", f".{pattern}.1.")
        assert torch.equal(tensor, theirs[source]), name
    assert student.model.config.num_hidden_layers == 1
    checkpoints.save_denoiser(student, tmp_path / "student")
    again = checkpoints.load_denoiser(str(tmp_path / "student"))
    (state,) = conformance.masked_states(denoiser, [9])
    assert torch.equal(_logits(again, state), _logits(student, state))


def test_half_of_lladas_layers_are_spaced_with_both_ends(tmp_path: Path) -> None:
    llada.build(tmp_path)
    student = _student(str(tmp_path), config_overrides={"num_hidden_layers": 2})
    teacher = checkpoints.load_denoiser(str(tmp_path))
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    for ours_layer, theirs_layer in ((0, 0), (1, 3)):
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            copied = ours[f"model.layers.{ours_layer}.{part}.weight"]
            assert torch.equal(copied, theirs[f"model.layers.{theirs_layer}.{part}.weight"])
    assert torch.equal(student.head_weight, teacher.head_weight)


def test_a_config_without_weights_is_read_as_it_is(tmp_path: Path) -> None:
    diffugpt.build_medium(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    spec = StudentSpec(config_path=str(tmp_path), config_overrides={"vocab_size": 284})
    student = build_student(spec, device="cpu", dtype=None)
    assert student.info.padded_vocab_size == 284
    stated = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    assert stated == 282


def test_a_mask_that_nothing_names_is_given_by_an_override(tmp_path: Path) -> None:
    diffugpt.build_small(tmp_path)
    overrides = {"mask_token_id": diffugpt.MASK_TOKEN_ID, "num_hidden_layers": 2}
    student = _student(str(tmp_path), config_overrides=overrides)
    assert student.info.mask_token_id == diffugpt.MASK_TOKEN_ID
    assert student.model.config.n_layer == 2


@pytest.mark.parametrize("layers", [(0, 4), (2, 1), (1, 1), (-1, 0)])
def test_layers_that_the_teacher_does_not_have_are_refused(
    tmp_path: Path, layers: tuple[int, ...]
) -> None:
    llada.build(tmp_path)
    with pytest.raises(ValueError, match=r"distill\.student_layers must rise and lie in \[0, 4\)"):
        _student(str(tmp_path), teacher_layers=layers)


def test_a_choice_that_contradicts_the_rest_is_refused() -> None:
    with pytest.raises(ValueError, match="but no weights are copied"):
        StudentSpec(teacher_model_path="a", teacher_layers=(0, 1))
    with pytest.raises(ValueError, match="num_hidden_layers is 3, but 2 layers are chosen"):
        StudentSpec(
            teacher_model_path="a",
            init_from_teacher=True,
            teacher_layers=(0, 1),
            config_overrides={"num_hidden_layers": 3},
        )


def test_tensors_that_are_merged_on_loading_are_refused_by_name(tmp_path: Path) -> None:
    experts = next(f for f in block_diffusion.FIXTURES if f.name == "sdar_moe")
    experts.build(tmp_path / "teacher")
    with pytest.raises(ValueError, match="tensors of sdar_moe are split and merged on loading"):
        _student(str(tmp_path / "teacher"))


def test_a_bd3lm_student_is_asked_for_by_its_block_length(tmp_path: Path) -> None:
    FIXTURES["a2d-qwen3"].build(tmp_path / "teacher")
    student = _student(str(tmp_path / "teacher"), config_overrides={"block_length": 4})
    assert student.info.attention == "block_causal"
    assert student.info.block_length == 4
