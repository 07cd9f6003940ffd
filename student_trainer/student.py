"""The student: how it is built, and whether it speaks the teacher's vocabulary.

It is written to disk by `masked_diffusion.checkpoints.save_denoiser`, as every denoiser is.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from masked_diffusion import checkpoints, pretrained
from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.families.info import Noise
from student_trainer.initialization import copy_from_teacher
from student_trainer.student_config import StudentSpec, read_config
from student_trainer.wire import TeacherDescription

__all__ = [
    "StudentSpec",
    "TeacherFacts",
    "build_student",
    "check_vocabulary",
    "common_info",
    "outline_student",
]


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What a student must share with its teacher."""

    vocab_size: int
    """Real vocabulary, without padded rows."""
    mask_token_id: int
    tokenizer_fingerprint: str
    """SHA-256 of the vocabulary; "" where unknown."""
    noise: Noise = "absorbing"
    """What the forward process puts in a token's place."""


def build_student(
    spec: StudentSpec, *, device: str | torch.device, dtype: torch.dtype | None
) -> Denoiser:
    """Builds the student, in training mode.

    A new one gets the tokenizer beside its config, or else the teacher's.

    Args:
        dtype: Of the weights; None keeps what was saved, float32 for a new student.

    Raises:
        ValueError: A path cannot be read, an override is no field of the config, or the teacher's
            weights do not fit.
    """
    if spec.model_path is not None:
        loaded = checkpoints.load_denoiser(spec.model_path, device=device, dtype=dtype)
        return loaded.train()
    config, tokenizer = _read_parts(spec)
    denoiser = checkpoints.new_denoiser(config, tokenizer, seed=spec.seed)
    # In the final dtype first: a copied bfloat16 weight then never exists in float32.
    denoiser.to(dtype=dtype)
    if spec.init_from_teacher and spec.teacher_model_path is not None:
        copy_from_teacher(denoiser, spec.teacher_model_path, layers=spec.teacher_layers)
    return denoiser.to(device)


def outline_student(spec: StudentSpec) -> Denoiser:
    """The student's facts and tokenizer, on the meta device: no weight is read or made.

    Raises:
        ValueError: As `build_student`.
    """
    config, tokenizer = _read_parts(spec)
    with torch.device("meta"):
        return checkpoints.new_denoiser(config, tokenizer, seed=spec.seed)


def check_vocabulary(student: DenoiserInfo, teacher: TeacherFacts) -> None:
    """Refuses a student whose ids or whose noise mean something else than the teacher's.

    Fingerprints are compared where both are known.

    Raises:
        ValueError: Naming the first of vocab_size, mask_token_id, tokenizer_fingerprint and noise
            that differs.
    """
    names = ["vocab_size", "mask_token_id"]
    if student.tokenizer_fingerprint and teacher.tokenizer_fingerprint:
        names.append("tokenizer_fingerprint")
    for name in names:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(
                f"student and teacher differ in {name}: the student {student.name!r} has {ours!r}, "
                f"the teacher {theirs!r}; a distribution over other ids teaches nothing: give the "
                "student the teacher's tokenizer, or ask a teacher that shares the student's"
            )
    if student.noise != teacher.noise:
        raise ValueError(
            f"student and teacher differ in noise: the student {student.name!r} has "
            f"{student.noise!r}, the teacher {teacher.noise!r}; a state of one means nothing to "
            f"the other: set model.config_overrides.noise={teacher.noise}, or ask another teacher"
        )


def common_info(student: DenoiserInfo, teacher: TeacherDescription) -> DenoiserInfo:
    """The student's facts without the positions that the teacher cannot predict.

    What makes states must know these: a position without a prediction carries no targets.

    Raises:
        ValueError: Student and teacher do not speak of the same ids, see `check_vocabulary`.
    """
    check_vocabulary(
        student,
        TeacherFacts(
            vocab_size=teacher.vocab_size,
            mask_token_id=teacher.mask_token_id,
            tokenizer_fingerprint=teacher.tokenizer_fingerprint,
            noise=teacher.noise,
        ),
    )
    num_invalid = max(student.num_invalid_leading_positions, teacher.num_invalid_leading_positions)
    return dataclasses.replace(student, num_invalid_leading_positions=num_invalid)


def _read_parts(spec: StudentSpec) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None]:
    """The config and the tokenizer: a new student has that beside its config, or the teacher's."""
    paths = [spec.model_path or spec.config_path]
    if spec.model_path is None:
        paths.append(spec.teacher_model_path)
    sources = [path for path in paths if path is not None]
    config = read_config(sources[0], spec.all_overrides)
    folders = [source for source in sources if not Path(source).is_file()]
    found = (pretrained.load_tokenizer(f, config, trust_remote_code=False) for f in folders)
    return config, next((tokenizer for tokenizer in found if tokenizer is not None), None)
