"""The command line of `distill evaluate`, made from the fields of its configuration."""

import argparse
import dataclasses
from collections.abc import Sequence

import pydantic

from student_trainer.config_file import ConfigError, error_messages, field_docs
from student_trainer.evaluation.config import EvaluationConfig
from student_trainer.evaluation.model_spec import parse_model
from student_trainer.evaluation.sampler_spec import parse_sampler
from student_trainer.evaluation.scorers import parse_scorer
from student_trainer.evaluation.table import EVALUATIONS

_REPEATED = ("model", "scorer")


def parse(arguments: Sequence[str]) -> EvaluationConfig:
    """Reads the flags; `--help` and unknown flags end the process as argparse does.

    Raises:
        ConfigError: a value that is not allowed; the message names flag, value and mend.
    """
    values = vars(_parser().parse_args(arguments))
    try:
        config = pydantic.TypeAdapter(EvaluationConfig).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(error_messages(error))) from error
    try:
        _check_texts(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def _check_texts(config: EvaluationConfig) -> None:
    """Reads what is written in a notation of its own, for its errors."""
    for name in config.evaluations:
        if name not in EVALUATIONS:
            raise ValueError(f"--evaluations names {name!r}; known: {', '.join(EVALUATIONS)}")
    _check_needs(config)
    config.tasks_options(seed=config.seed)
    config.lm_options(seed=config.seed, batch_size=config.batch_size)
    for text in filter(None, (*config.model, config.teacher)):
        parse_model(text)
    for text in (
        *config.samplers,
        *([config.infilling_sampler] if config.infilling_sampler else []),
    ):
        parse_sampler(text).config(config.steps[0], temperature=config.temperature)
    for text in config.scorer:
        parse_scorer(text)


def _check_needs(config: EvaluationConfig) -> None:
    """Refuses an evaluation without what it needs, and tasks without their evaluation."""
    if not (config.data_path or config.tasks):
        raise ValueError("nothing to measure: give --data_path, --tasks or both")
    for name in config.evaluations:
        needed = EVALUATIONS[name].needs
        if not getattr(config, needed):
            raise ValueError(f"--evaluations {name} needs --{needed}")
    if config.tasks and config.evaluations and "tasks" not in config.evaluations:
        raise ValueError(
            f"--tasks names {', '.join(config.tasks)}, but --evaluations leaves tasks out; add it"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill evaluate",
        description="Measures models on held-out text, on what they write and by benchmark tasks, "
        "beside a teacher if there is one: evaluation.json, table.txt, plots and index.html in "
        "--output_dir.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    docs = field_docs(EvaluationConfig)
    for field in dataclasses.fields(EvaluationConfig):
        flag, text = f"--{field.name}", docs[field.name].replace("%", "%%")
        if field.type is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif field.name in _REPEATED:
            parser.add_argument(flag, action="append", metavar="MODEL", help=text)
        elif str(field.type).startswith("list"):
            parser.add_argument(
                flag, type=_split, metavar="A,B,...", help=f"{text}{_default(field)}"
            )
        else:
            parser.add_argument(flag, metavar=field.name.upper(), help=f"{text}{_default(field)}")
    return parser


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _default(field: dataclasses.Field) -> str:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = ",".join(map(str, field.default_factory()))
    return "" if default in (None, "") else f" (default: {default})"
