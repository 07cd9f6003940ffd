"""Starts a student from its teacher's weights: all of them, or evenly spaced layers."""

import re

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from masked_diffusion.families import Denoiser
from student_trainer.student_config import read_config
from student_trainer.teacher_checkpoint import TeacherCheckpoint, open_teacher

IRRELEVANT_CONFIG_FIELDS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dropout",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_causal",
        "label2id",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "model_length",
        "n_blocks",
        "num_hidden_layers",
        "pad_token_id",
        "transformers_version",
        "use_cache",
    }
)
"""Fields in which teacher and student may differ without a copied weight meaning something else."""


def copy_from_teacher(denoiser: Denoiser, teacher_model_path: str) -> None:
    """Overwrites the student's weights with the teacher's, read one tensor at a time.

    A student of the same depth becomes a copy. A shallower one takes the layers of `teacher_layer`
    and everything else as it is.

    Raises:
        ValueError: The student is deeper, or differs in anything but depth.
    """
    student_config = denoiser.model.config
    teacher_config = read_config(teacher_model_path)
    num_layers = int(student_config.num_hidden_layers)
    num_teacher_layers = int(teacher_config.num_hidden_layers)
    if num_layers > num_teacher_layers:
        raise _misfit(
            f"it is deeper: num_hidden_layers is {num_layers}, the teacher's {num_teacher_layers}"
        )
    if differing := _differing_fields(student_config, teacher_config):
        raise _misfit(f"only the depth may differ, but so does {differing}")
    teacher = open_teacher(teacher_model_path)
    with torch.no_grad():
        for source, target in _pairs(denoiser, teacher, num_layers, num_teacher_layers):
            target.copy_(teacher.tensor(source))


def teacher_layer(index: int, *, num_layers: int, num_teacher_layers: int) -> int:
    """The teacher's layer that a shallower student's layer `index` is copied from.

    Evenly spaced with both ends: round(index * (num_teacher_layers - 1) / (num_layers - 1)), halves
    to even; a single layer is the teacher's last, the one that the head was trained on.
    """
    if num_layers == 1:
        return num_teacher_layers - 1
    return round(index * (num_teacher_layers - 1) / (num_layers - 1))


def _differing_fields(student: PreTrainedConfig, teacher: PreTrainedConfig) -> str:
    ours, theirs = student.to_dict(), teacher.to_dict()
    # Only what both state: a teacher from elsewhere has no logit_alignment in its config.
    names = sorted(ours.keys() & theirs.keys() - IRRELEVANT_CONFIG_FIELDS)
    return ", ".join(
        f"{name} ({ours[name]!r}, the teacher's {theirs[name]!r})"
        for name in names
        if ours[name] != theirs[name]
    )


def _pairs(
    denoiser: Denoiser, teacher: TeacherCheckpoint, num_layers: int, num_teacher_layers: int
) -> list[tuple[str, Tensor]]:
    """The teacher's tensor name for each of the student's; everything is checked before a copy."""

    def source_of(name: str) -> str:
        return re.sub(
            denoiser.layer_pattern,
            lambda match: str(
                teacher_layer(
                    int(match.group()), num_layers=num_layers, num_teacher_layers=num_teacher_layers
                )
            ),
            name,
            count=1,
        )

    # Tied tensors appear under each of their names, but a checkpoint holds only one of them.
    state = denoiser.model.state_dict(keep_vars=True)
    pairs = {id(t): (source_of(n), t) for n, t in state.items() if source_of(n) in teacher.shapes}
    for name, tensor in state.items():
        shape = teacher.shapes.get(source_of(name))
        if id(tensor) not in pairs:
            raise _misfit(f"the teacher has no tensor {source_of(name)}")
        if shape is not None and shape != tuple(tensor.shape):
            raise _misfit(
                f"{name} has the shape {tuple(tensor.shape)}, the teacher's "
                f"{source_of(name)} {shape}"
            )
    return list(pairs.values())


def _misfit(reason: str) -> ValueError:
    return ValueError(
        f"the student cannot start from the teacher's weights: {reason}; give it the teacher's "
        "values, or set distill.init_student_from_teacher=false to start from random weights"
    )
