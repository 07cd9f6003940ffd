"""How one request is answered: the user's options and the task's, put together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic

from masked_diffusion.families import DenoiserInfo
from masked_diffusion.samplers import SamplerConfig, check_fits
from student_trainer.tasks.options import GenerationOptions

DEFAULT_MAX_NEW_TOKENS = 256
"""Where neither the user nor the task says; lm-eval's own default."""

_NAMES_OF_LENGTH = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call it; the first that is there counts."""
_DONE_ANYWAY: Mapping[str, object] = {"num_beams": 1, "num_return_sequences": 1}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How one request is answered."""

    max_new_tokens: int
    sampler: SamplerConfig
    until: tuple[str, ...]
    """Texts at which the answer ends."""


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What a task may ask for: `generation_kwargs`."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    until: list[str] | str | None = None
    max_new_tokens: int | None = None
    do_sample: bool | None = None
    """False makes the temperature 0."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


_TASK_REQUEST = pydantic.TypeAdapter(TaskRequest)


def read_task_request(values: Mapping[str, Any]) -> TaskRequest:
    """Checks `generation_kwargs` of a task.

    Raises:
        ValueError: something that no sampler of ours knows, or a value of another type.
    """
    known = {name: value for name, value in values.items() if _DONE_ANYWAY.get(name) != value}
    lengths = [known.pop(name, None) for name in _NAMES_OF_LENGTH]
    known["max_new_tokens"] = next((length for length in lengths if length is not None), None)
    try:
        return _TASK_REQUEST.validate_python(known)
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"])
        raise ValueError(
            f"the task asks for {name}={wrong['input']!r} in generation_kwargs: {wrong['msg']}; "
            f"known are {', '.join(TaskRequest.__dataclass_fields__)}"
        ) from error


def decoding_of(options: GenerationOptions, task: TaskRequest, info: DenoiserInfo) -> Decoding:
    """Puts a user's options and a task's together; where both say something, the user counts.

    Raises:
        ValueError: the denoiser cannot honour the choice.
    """
    default_algorithm = "multinomial" if info.noise == "uniform" else "low_confidence"
    max_new_tokens = options.max_new_tokens or task.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    asked_temperature = 0.0 if task.do_sample is False else task.temperature
    sampler = SamplerConfig(
        algorithm=options.algorithm or default_algorithm,
        num_steps=options.num_steps or max_new_tokens,
        temperature=_first(options.temperature, asked_temperature) or 0.0,
        top_p=_first(options.top_p, task.top_p),
        top_k=task.top_k if options.top_k is None else options.top_k,
        alg_temp=options.alg_temp,
        block_length=options.block_length,
        guidance_scale=options.guidance_scale,
        threshold=options.threshold,
        entropy_bound=options.entropy_bound,
        suppress_mask_token=options.suppress_mask_token,
    )
    check_fits(sampler, info)
    until = [task.until] if isinstance(task.until, str) else task.until or []
    return Decoding(
        max_new_tokens=max_new_tokens, sampler=sampler, until=tuple(filter(None, until))
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
