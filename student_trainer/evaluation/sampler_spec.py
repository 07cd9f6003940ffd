"""Samplers as they are asked for on the command line: `ALGORITHM[:key=value...]`."""

import dataclasses
import difflib
from dataclasses import dataclass

import pydantic

from masked_diffusion.samplers import ALGORITHMS, SamplerConfig
from student_trainer.config_file import error_messages

OPTION_NAMES = tuple(
    field.name
    for field in dataclasses.fields(SamplerConfig)
    if field.name not in ("algorithm", "num_steps")
)


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """A sampler but for its number of steps."""

    label: str
    """As it was written; names the sampler in tables, plots and JSON."""
    algorithm: str
    options: dict[str, str]

    def config(self, num_steps: int, *, temperature: float) -> SamplerConfig:
        """Completes it; `temperature` holds where the options name none.

        Raises:
            ValueError: naming the field that is not allowed.
        """
        values = {
            "temperature": temperature,
            **self.options,
            "algorithm": self.algorithm,
            "num_steps": num_steps,
        }
        try:
            return pydantic.TypeAdapter(SamplerConfig).validate_python(values)
        except pydantic.ValidationError as error:
            reasons = "; ".join(error_messages(error))
            raise ValueError(f"sampler {self.label!r}: {reasons}") from error


def parse_sampler(text: str) -> SamplerSpec:
    """Reads `entropy` or `low_confidence:temperature=0.8:block_length=32`.

    Raises:
        ValueError: an unknown algorithm or option, with the nearest known one.
    """
    algorithm, *parts = text.split(":")
    if algorithm not in ALGORITHMS:
        (nearest,) = difflib.get_close_matches(algorithm, ALGORITHMS, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown sampler {algorithm!r}; did you mean {nearest!r}? known: "
            f"{', '.join(ALGORITHMS)}"
        )
    options = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in OPTION_NAMES or not equals:
            (nearest,) = difflib.get_close_matches(key, OPTION_NAMES, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown option {part!r} of sampler {text!r}; did you mean {nearest}=...? known: "
                f"{', '.join(OPTION_NAMES)}"
            )
        options[key] = value
    return SamplerSpec(label=text, algorithm=algorithm, options=options)
