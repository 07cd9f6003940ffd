"""What a student is made from, and the model config that follows."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from masked_diffusion.families import get_family
from masked_diffusion.published_config import read_published_config

ConfigOverrides = dict[str, int | float | str | bool]

DENOISER_FIELDS = ("block_length", "logit_alignment", "mask_token_id", "noise")
"""What a denoiser's config may say beyond its class's own fields."""


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """How a student comes to be: loaded, or made from a config at random, or from the teacher."""

    model_path: str | None = None
    """Folder or hub id of a denoiser to start from, weights and all."""
    config_path: str | None = None
    """Folder, hub id or JSON file of the config of a new student; None takes the teacher's."""
    config_overrides: ConfigOverrides = field(default_factory=dict)
    """Fields to change in that config, such as num_hidden_layers."""
    init_from_teacher: bool = False
    """Copies the teacher's weights into the new student; see `copy_from_teacher`."""
    teacher_layers: tuple[int, ...] = ()
    """Layers of the teacher to copy, which gives the student its depth; empty spaces them evenly
    over num_hidden_layers."""
    teacher_model_path: str | None = None
    """Folder or hub id of the teacher; only its config, tokenizer and single tensors are read."""
    seed: int = 0
    """Of the random initialisation."""

    def __post_init__(self) -> None:
        if self.model_path is not None:
            self._require_no_second_origin()
        elif self.config_path is None and self.teacher_model_path is None:
            raise ValueError(
                "the student needs one of model_path, config_path and teacher_model_path, "
                "got none of them"
            )
        if self.init_from_teacher and self.teacher_model_path is None:
            raise ValueError(
                "init_from_teacher needs teacher_model_path, got None; name the teacher's "
                "checkpoint or set distill.init_student_from_teacher=false"
            )
        if self.teacher_layers:
            self._require_copied_layers()

    @property
    def all_overrides(self) -> ConfigOverrides:
        """The overrides with the depth that `teacher_layers` asks for."""
        if not self.teacher_layers:
            return self.config_overrides
        return {**self.config_overrides, "num_hidden_layers": len(self.teacher_layers)}

    def _require_copied_layers(self) -> None:
        if not self.init_from_teacher:
            raise ValueError(
                f"teacher_layers is {list(self.teacher_layers)}, but no weights are copied; set "
                "distill.init_student_from_teacher=true or leave distill.student_layers out"
            )
        depth = self.config_overrides.get("num_hidden_layers", len(self.teacher_layers))
        if depth != len(self.teacher_layers):
            raise ValueError(
                f"num_hidden_layers is {depth}, but {len(self.teacher_layers)} layers are chosen "
                f"({list(self.teacher_layers)}); leave model.config_overrides num_hidden_layers "
                "out: the choice gives the depth"
            )

    def _require_no_second_origin(self) -> None:
        for name in ("config_path", "config_overrides", "init_from_teacher"):
            if value := getattr(self, name):
                raise ValueError(
                    f"model_path {self.model_path!r} already says what the student starts from, "
                    f"got also {name} = {value!r}; leave one of the two out"
                )


def read_config(path: str, overrides: ConfigOverrides | None = None) -> PreTrainedConfig:
    """Reads the model config of a folder, hub id or JSON file, with some fields changed.

    Raises:
        ValueError: It cannot be read, its model_type is unknown, or an override is not one of its
            fields or does not fit the others.
    """
    overrides = overrides or {}
    block_length = overrides.get("block_length")
    config = _read_config(path, None if block_length is None else int(block_length))
    values = config.to_dict()
    # GPT-2 writes n_layer for num_hidden_layers, and takes both.
    aliases = config.attribute_map
    known = sorted({*values, *aliases, *DENOISER_FIELDS})
    for name in overrides:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"the config of {path!r} has no field {name!r}; did you mean {nearest!r}?"
            )
    if "num_hidden_layers" in overrides:
        # It has one entry a layer; the class fills it in again for the new depth.
        values.pop("layer_types", None)
    changed = {aliases.get(name, name): value for name, value in overrides.items()}
    try:
        return type(config).from_dict({**values, **changed})
    except StrictDataclassError as error:
        raise ValueError(
            f"the config of {path!r} cannot be changed by {overrides}: {error}"
        ) from error


def _read_config(path: str, block_length: int | None) -> PreTrainedConfig:
    if not Path(path).is_file():
        return read_published_config(path, block_length=block_length)[1]
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
    except OSError as error:
        raise ValueError(f"cannot read a model config from {path!r}: {error}") from error
    return get_family(str(values.get("model_type"))).read_config(values)
