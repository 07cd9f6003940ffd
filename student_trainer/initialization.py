"""Starts a student from its teacher's weights: all of them, or some of its layers."""

import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from masked_diffusion.families import Denoiser
from masked_diffusion.published_config import read_published_config
from masked_diffusion.tensor_files import TensorFiles, open_tensors

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


def copy_from_teacher(
    denoiser: Denoiser, teacher_model_path: str, *, layers: Sequence[int] = ()
) -> None:
    """Overwrites the student's weights with the teacher's, read one tensor at a time.

    A student of the same depth becomes a copy. A shallower one takes some of the layers and
    everything else as it is. The teacher may be published under other names: its family knows
    them.

    Args:
        layers: The teacher's layer for each of the student's; empty takes those of
            `spaced_layers`.

    Raises:
        ValueError: the student is deeper, or differs in anything but depth, or a layer is chosen
            that the teacher does not have.
    """
    # A block-causal student reads the teacher's folder as it was read itself.
    family, teacher_config = read_published_config(
        teacher_model_path, block_length=denoiser.info.block_length
    )
    if family.converts_tensors:
        raise _misfit(f"the tensors of {family.family} are split and merged on loading")
    student_config = denoiser.model.config
    num_layers = int(student_config.num_hidden_layers)
    num_teacher_layers = int(teacher_config.num_hidden_layers)
    if num_layers > num_teacher_layers:
        raise _misfit(
            f"it is deeper: num_hidden_layers is {num_layers}, the teacher's {num_teacher_layers}"
        )
    if differing := _differing_fields(student_config, teacher_config):
        raise _misfit(f"only the depth may differ, but so does {differing}")
    chosen = list(layers) or spaced_layers(num_layers, num_teacher_layers)
    _require_layers(chosen, num_layers, num_teacher_layers)
    teacher = open_tensors(teacher_model_path, family.key_mapping)
    with torch.no_grad():
        for source, target in _pairs(denoiser, teacher, chosen):
            target.copy_(teacher.tensor(source))


def spaced_layers(num_layers: int, num_teacher_layers: int) -> list[int]:
    """The teacher's layers that a shallower student's are copied from, in order.

    Evenly spaced with both ends: round(i * (num_teacher_layers - 1) / (num_layers - 1)), halves to
    even; a single layer is the teacher's last, the one that the head was trained on.
    """
    if num_layers == 1:
        return [num_teacher_layers - 1]
    step = (num_teacher_layers - 1) / (num_layers - 1)
    return [round(i * step) for i in range(num_layers)]


def _require_layers(chosen: list[int], num_layers: int, num_teacher_layers: int) -> None:
    in_order = all(a < b for a, b in itertools.pairwise(chosen))
    if not in_order or chosen[0] < 0 or chosen[-1] >= num_teacher_layers:
        raise ValueError(
            f"distill.student_layers must rise and lie in [0, {num_teacher_layers}), the teacher's "
            f"layers, got {chosen}"
        )
    if len(chosen) != num_layers:
        raise ValueError(
            f"distill.student_layers has {len(chosen)} layers, the student {num_layers}; choose "
            "one of the teacher's for each of the student's"
        )


def _differing_fields(student: PreTrainedConfig, teacher: PreTrainedConfig) -> str:
    ours, theirs = student.to_dict(), teacher.to_dict()
    aliases = student.attribute_map
    irrelevant = {aliases.get(name, name) for name in IRRELEVANT_CONFIG_FIELDS}
    # Only what both state: a teacher from elsewhere may not name its mask.
    names = sorted((ours.keys() & theirs.keys()) - irrelevant)
    return ", ".join(
        f"{name} ({ours[name]!r}, the teacher's {theirs[name]!r})"
        for name in names
        if ours[name] != theirs[name]
    )


def _pairs(denoiser: Denoiser, teacher: TensorFiles, chosen: list[int]) -> list[tuple[str, Tensor]]:
    """The teacher's tensor name for each of the student's; everything is checked before a copy."""

    def source_of(name: str) -> str:
        return re.sub(
            denoiser.layer_pattern, lambda match: str(chosen[int(match.group())]), name, count=1
        )

    # Tied tensors appear under each of their names, but a checkpoint holds only one of them.
    shapes = teacher.shapes
    state = denoiser.model.state_dict(keep_vars=True)
    pairs = {id(t): (source_of(n), t) for n, t in state.items() if source_of(n) in shapes}
    for name, tensor in state.items():
        shape = shapes.get(source_of(name))
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
