"""The arguments of a model as lm-eval passes them: flat names, from one line of text."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic

from student_trainer.tasks.options import GenerationOptions, LikelihoodOptions, ModelOptions


@dataclass(frozen=True, kw_only=True)
class LmOptions:
    """Everything about how a denoiser takes part in tasks."""

    model: ModelOptions
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    likelihood: LikelihoodOptions = field(default_factory=LikelihoodOptions)
    add_bos_token: bool | None = None
    """Begin every prompt with the token that begins a text; None does as the tokenizer itself."""
    max_length: int | None = None
    """Positions of a prompt and its answer; None for all that the denoiser has."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:  # noqa: PLR2004
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")


_LM_OPTIONS = pydantic.TypeAdapter(LmOptions)

_SECTIONS: Mapping[str, type] = {
    "model": ModelOptions,
    "generation": GenerationOptions,
    "likelihood": LikelihoodOptions,
}

_ALIASES: Mapping[str, str] = {
    "pretrained": "model",
    "peft": "adapters",
    "gen_length": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "steps": "num_steps",
    "alg": "algorithm",
    "cfg": "guidance_scale",
    "mc_num": "num_masks",
    "is_check_greedy": "check_greedy",
}
"""Names in use elsewhere (lm-eval, LLaDA, Open-dLLM) -> ours."""

_IGNORED = ("max_batch_size",)
"""lm-eval passes it along; it is about batch_size=auto, which is refused."""

_FIELDS: Mapping[str, tuple[str, ...]] = {
    name: tuple(
        section
        for section, options in _SECTIONS.items()
        if name in {f.name for f in dataclasses.fields(options)}
    )
    for name in (
        *(f.name for options in _SECTIONS.values() for f in dataclasses.fields(options)),
        "add_bos_token",
        "max_length",
    )
}
"""Name -> the sections that have it; seed and batch_size are of two, some of none."""


def read_model_args(model_args: Mapping[str, Any]) -> LmOptions:
    """Reads flat arguments: `pretrained=PATH, steps=64, mc_num=128, batch_size=8`.

    Every field of ModelOptions, GenerationOptions and LikelihoodOptions is an argument, and those
    of LmOptions. `adapters` separates several by a plus sign.

    Raises:
        ValueError: unknown names, with the nearest known one, or values that are not allowed.
    """
    values: dict[str, Any] = {section: {} for section in _SECTIONS}
    for given, value in model_args.items():
        name = _ALIASES.get(given, given)
        if given in _IGNORED:
            continue
        if name not in _FIELDS:
            near = difflib.get_close_matches(given, [*_FIELDS, *_ALIASES], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown model argument {given!r}{hint}")
        if name == "batch_size" and str(value).startswith("auto"):
            raise ValueError(f"batch_size must be a number, got {value!r}; try 8")
        for section in _FIELDS[name]:
            values[section][name] = value
        if not _FIELDS[name]:
            values[name] = value
    if isinstance(adapters := values["model"].get("adapters"), str):
        values["model"]["adapters"] = adapters.split("+")
    if "model" not in values["model"]:
        raise ValueError("the model argument pretrained is missing: give a folder or hub id")
    try:
        return _LM_OPTIONS.validate_python(values)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_message(wrong) for wrong in error.errors())) from error


def _message(wrong: Any) -> str:
    name = ".".join(str(part) for part in wrong["loc"][1:]) or "model argument"
    return f"{name}: {wrong['msg']}, got {wrong['input']!r}"
