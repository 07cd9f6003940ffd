import json
from pathlib import Path

import pytest
import safetensors
import torch

from masked_diffusion import checkpoints, tensor_files
from masked_diffusion.families import Denoiser
from student_trainer.initialization import copy_from_teacher, spaced_layers
from student_trainer.student import StudentSpec, TeacherFacts, build_student, check_vocabulary
from student_trainer.student_config import read_config
from tests import tiny_models

NUM_TEACHER_LAYERS = 5
STATES_BL = torch.tensor([[3, 4, 5, 2, 2, 6, 7, 2], [8, 2, 9, 2, 3, 2, 4, 2]])


@pytest.fixture(scope="module")
def teacher(tiny_tokenizer) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=320, num_layers=NUM_TEACHER_LAYERS)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=1).eval()


@pytest.fixture(scope="module")
def teacher_path(teacher, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "whole"
    checkpoints.save_denoiser(teacher, folder)
    return str(folder)


def build(dtype: torch.dtype | None = None, **fields) -> Denoiser:
    return build_student(StudentSpec(**fields), device="cpu", dtype=dtype)


def logits(denoiser: Denoiser) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.logits(denoiser.hidden_states(STATES_BL))


# Layers to take -------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "num_teacher_layers", "layers"),
    [
        (1, 24, [23]),
        (2, 24, [0, 23]),
        (3, 5, [0, 2, 4]),
        (4, 5, [0, 1, 3, 4]),
        (4, 24, [0, 8, 15, 23]),
        (12, 24, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 1, [0]),
    ],
)
def test_layers_are_taken_evenly_with_both_ends(num_layers, num_teacher_layers, layers):
    assert spaced_layers(num_layers, num_teacher_layers) == layers


def test_no_layer_is_taken_twice():
    for num_teacher_layers in range(1, 65):
        for num_layers in range(1, num_teacher_layers + 1):
            assert len(set(spaced_layers(num_layers, num_teacher_layers))) == num_layers


# Copies ---------------------------------------------------------------------


def test_a_student_of_the_same_depth_is_a_copy(teacher, teacher_path):
    student = build(teacher_model_path=teacher_path, init_from_teacher=True, seed=7)
    assert student.training
    assert torch.equal(logits(student.eval()), logits(teacher))
    assert checkpoints.weights_digest(student.model) == checkpoints.weights_digest(teacher.model)
    assert student.info.tokenizer_fingerprint == teacher.info.tokenizer_fingerprint
    assert student.info.mask_token_id == teacher.info.mask_token_id
    assert student.info.alignment == teacher.info.alignment


def test_a_shallower_student_takes_spaced_layers_and_all_else(teacher, teacher_path):
    student = build(
        teacher_model_path=teacher_path,
        init_from_teacher=True,
        config_overrides={"num_hidden_layers": 3},
    )
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    for name, tensor in ours.items():
        source = name
        for layer, taken in ((2, 4), (1, 2)):
            source = source.replace(f".layers.{layer}.", f".layers.{taken}.")
            if source != name:
                break
        assert torch.equal(tensor, theirs[source]), name
    assert student.model.config.num_hidden_layers == 3


def test_a_copy_is_converted_to_the_students_dtype(teacher, teacher_path):
    student = build(torch.bfloat16, teacher_model_path=teacher_path, init_from_teacher=True)
    assert student.head_weight.dtype == torch.bfloat16
    assert torch.equal(student.head_weight, teacher.head_weight.bfloat16())


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_checkpoints_are_read_and_each_tensor_once(
    tiny_tokenizer, tmp_path, monkeypatch, tied
):
    config = tiny_models.qwen2_config(vocab_size=320, num_layers=4, tie_word_embeddings=tied)
    sharded = checkpoints.new_denoiser(config, tiny_tokenizer, seed=2).eval()
    sharded.model.save_pretrained(tmp_path, max_shard_size="50KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    read: list[str] = []
    tensor = tensor_files.TensorFiles.tensor

    def recorded(self, name):
        read.append(name)
        return tensor(self, name)

    monkeypatch.setattr(tensor_files.TensorFiles, "tensor", recorded)
    config_class = type(sharded.model.config)
    shallow = config_class.from_dict(
        {**sharded.model.config.to_dict(), "num_hidden_layers": 2, "layer_types": None}
    )
    student = checkpoints.new_denoiser(shallow, tiny_tokenizer, seed=3)
    copy_from_teacher(student, str(tmp_path))
    # Nothing of the layers that are left out is read, and nothing twice.
    assert len(read) == len(set(read)) == len(list(student.model.parameters()))
    assert not any(".layers.1." in name or ".layers.2." in name for name in read)
    last = sharded.model.state_dict()["model.layers.3.mlp.up_proj.weight"]
    assert torch.equal(student.model.state_dict()["model.layers.1.mlp.up_proj.weight"], last)
    assert torch.equal(student.head_weight, sharded.head_weight)


def test_opening_a_teacher_reads_no_tensor(teacher, teacher_path):
    opened = tensor_files.open_tensors(teacher_path, {})
    assert not any(isinstance(value, torch.Tensor) for value in vars(opened).values())
    expected = {name: tuple(tensor.shape) for name, tensor in teacher.model.named_parameters()}
    assert opened.shapes == expected


# Other origins --------------------------------------------------------------


def test_a_new_student_is_random_by_seed_with_the_teachers_config_and_tokenizer(teacher_path):
    fields = {"teacher_model_path": teacher_path, "config_overrides": {"num_hidden_layers": 1}}
    one, same = build(seed=1, **fields), build(seed=1, **fields)
    other = build(seed=2, **fields)
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))
    assert one.tokenizer is not None


def test_a_config_as_a_json_file_or_folder_gives_a_student_with_the_teachers_tokenizer(
    teacher, teacher_path, tmp_path
):
    tiny_models.qwen2_config(vocab_size=320, hidden_size=16, num_layers=1).save_pretrained(tmp_path)
    for config_path in (tmp_path, tmp_path / "config.json"):
        student = build(config_path=str(config_path), teacher_model_path=teacher_path)
        assert student.info.hidden_size == 16
        assert student.info.tokenizer_fingerprint == teacher.info.tokenizer_fingerprint


def test_a_student_may_start_from_a_checkpoint_and_exports_back_to_one(
    teacher, teacher_path, tmp_path
):
    student = build(model_path=teacher_path)
    assert student.training
    checkpoints.save_denoiser(student, tmp_path / "student")
    again = build(model_path=str(tmp_path / "student")).eval()
    assert torch.equal(logits(again), logits(teacher))


# Refusals -------------------------------------------------------------------


def test_a_narrower_student_is_refused_with_the_fields_that_differ(teacher_path):
    overrides = {"hidden_size": 16, "intermediate_size": 48}
    with pytest.raises(ValueError, match=r"hidden_size \(16, the teacher's 32\)") as caught:
        build(teacher_model_path=teacher_path, init_from_teacher=True, config_overrides=overrides)
    message = str(caught.value)
    assert "intermediate_size (48, the teacher's 64)" in message
    assert "set distill.init_student_from_teacher=false" in message


def test_a_student_that_means_something_else_by_the_same_shapes_is_refused(teacher_path):
    for name, value in (("num_attention_heads", 4), ("rms_norm_eps", 0.5), ("hidden_act", "gelu")):
        overrides = {name: value, "num_key_value_heads": 4 if "heads" in name else 2}
        with pytest.raises(ValueError, match=name):
            build(
                teacher_model_path=teacher_path,
                init_from_teacher=True,
                config_overrides=overrides,
            )


def test_a_deeper_student_is_refused(teacher_path):
    with pytest.raises(ValueError, match=r"num_hidden_layers is 6, the teacher's 5.*=false"):
        build(
            teacher_model_path=teacher_path,
            init_from_teacher=True,
            config_overrides={"num_hidden_layers": 6},
        )


def test_a_teacher_without_a_tensor_that_the_student_needs_is_refused(teacher_path, tmp_path):
    for source in Path(teacher_path).iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    cut = {**tensors, "model.norm.weight": tensors["model.norm.weight"][:5].clone()}
    safetensors.torch.save_file(cut, weights)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has the shape \(32,\).*\(5,\)"):
        build(teacher_model_path=str(tmp_path), init_from_teacher=True)
    del cut["model.norm.weight"]
    safetensors.torch.save_file(cut, weights)
    with pytest.raises(ValueError, match=r"the teacher has no tensor model\.norm\.weight"):
        build(teacher_model_path=str(tmp_path), init_from_teacher=True)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors; give a folder or hub id"):
        build(teacher_model_path=str(tmp_path), init_from_teacher=True)


def test_a_spec_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match=r"got also config_overrides = \{'num_hidden_layers': 1\}"):
        StudentSpec(model_path="a", config_overrides={"num_hidden_layers": 1})
    with pytest.raises(ValueError, match="got also init_from_teacher = True"):
        StudentSpec(model_path="a", init_from_teacher=True, teacher_model_path="b")
    with pytest.raises(ValueError, match="one of model_path, config_path and teacher_model_path"):
        StudentSpec()
    with pytest.raises(ValueError, match="init_from_teacher needs teacher_model_path, got None"):
        StudentSpec(config_path="a", init_from_teacher=True)


def test_an_override_that_is_no_field_or_does_not_fit_is_refused(teacher_path):
    with pytest.raises(ValueError, match="no field 'num_layers'; did you mean 'num_hidden_layers'"):
        read_config(teacher_path, {"num_layers": 3})
    with pytest.raises(ValueError, match="cannot be changed by"):
        read_config(teacher_path, {"num_hidden_layers": "three"})
    with pytest.raises(ValueError, match=r"no such folder: \./nowhere"):
        read_config("./nowhere")


def test_a_broken_config_file_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot read a model config from"):
        read_config(str(path))


@pytest.mark.parametrize(
    ("name", "value"), [("vocab_size", 7), ("mask_token_id", 0), ("tokenizer_fingerprint", "ab")]
)
def test_another_vocabulary_is_refused_by_name_with_both_values(teacher, name, value):
    ours = {
        "vocab_size": teacher.info.vocab_size,
        "mask_token_id": teacher.info.mask_token_id,
        "tokenizer_fingerprint": teacher.info.tokenizer_fingerprint,
    }
    check_vocabulary(teacher.info, TeacherFacts(**ours))
    check_vocabulary(teacher.info, TeacherFacts(**{**ours, "tokenizer_fingerprint": ""}))
    with pytest.raises(ValueError, match=f"differ in {name}") as caught:
        check_vocabulary(teacher.info, TeacherFacts(**{**ours, name: value}))
    assert repr(ours[name]) in str(caught.value)
    assert repr(value) in str(caught.value)
