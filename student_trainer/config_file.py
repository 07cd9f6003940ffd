"""Reads a configuration: a YAML file, dotted overrides, checks, and the manual of all fields."""

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pydantic
import yaml

from student_trainer.config import Config, DataConfig, DistillConfig, ModelConfig, TrainConfig

_SECTIONS: Mapping[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "distill": DistillConfig,
}
_TYPES: Mapping[str, object] = {
    f"{section}.{field.name}": field.type
    for section, config_class in _SECTIONS.items()
    for field in dataclasses.fields(config_class)
}
"""Every setting by its whole name, with the type of its field."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field, the value and the mend."""


def load_config(arguments: Sequence[str]) -> Config:
    """Reads `[CONFIG.yaml] --section.field=value ...`; later arguments win.

    Raises:
        ConfigError: unknown names (with the nearest known one) or values that are not allowed.
    """
    values: dict[str, dict[str, object]] = {}
    for name, value in _read_arguments(arguments):
        section, _, key = name.partition(".")
        is_list = _TYPES[name] in (list[str], list[int])
        values.setdefault(section, {})[key] = _split(value) if is_list else value
    try:
        return pydantic.TypeAdapter(Config).validate_python(_with_sections(values))
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(error_messages(error))) from error


def to_yaml(config: Config) -> str:
    """The effective configuration, defaults included, as a file that `load_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def manual() -> str:
    """All fields with type, default and explanation."""
    lines = []
    for section, config_class in _SECTIONS.items():
        lines.append(f"{section}: {config_class.__doc__}")
        docs = field_docs(config_class)
        for field in dataclasses.fields(config_class):
            kind = _type_name(field.type)
            lines.append(f"  --{section}.{field.name} ({kind}, default {_default(field)})")
            lines.append(textwrap.indent(textwrap.fill(docs[field.name], 90), "      "))
    return "\n".join(lines)


def _read_arguments(arguments: Sequence[str]) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    pending = list(arguments)
    if pending and not pending[0].startswith("--"):
        pairs += _read_file(Path(pending.pop(0)))
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(
                f"unexpected argument {argument!r}; write --section.field=value, and the YAML file "
                "first"
            )
        name, equals, value = argument[2:].partition("=")
        if not equals:
            # `--train.save_hf_weights` alone switches it on.
            value = "true" if not pending or pending[0].startswith("--") else pending.pop(0)
        _check_known(name)
        pairs.append((name, _parse(value, _TYPES[name])))
    return pairs


def _parse(text: str, kind: object) -> object:
    """An override's value, read as YAML; a text that YAML takes for something else stays a text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # A folder may be called 2026 or 2026-11-24.
    if kind is str or (kind == str | None and value is not None):
        return value if isinstance(value, str) else text
    return value


def _split(value: object) -> object:
    """A list that was written as one text, with commas."""
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _read_file(path: Path) -> list[tuple[str, object]]:
    if not path.is_file():
        raise ConfigError(f"no configuration file {str(path)!r}; give the path of a YAML file")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    sections = {} if document is None else document
    if not isinstance(sections, dict):
        raise ConfigError(f"{path} must hold the sections {', '.join(_SECTIONS)}, got {document!r}")
    pairs: list[tuple[str, object]] = []
    for section, fields in sections.items():
        if section not in _SECTIONS:
            (nearest,) = difflib.get_close_matches(str(section), _SECTIONS, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown section {section!r}; did you mean {nearest!r}?")
        if not isinstance(fields, dict | None):
            raise ConfigError(f"{path}: section {section} must hold fields, got {fields!r}")
        pairs += [(f"{section}.{name}", value) for name, value in (fields or {}).items()]
    for name, _ in pairs:
        _check_known(name)
    return pairs


def _check_known(name: str) -> None:
    if name in _TYPES:
        return
    # The field alone first: a right name in the wrong section is the commonest slip.
    key = name.rpartition(".")[2]
    close = [known for known in _TYPES if key and known.endswith(f".{key}")]
    close = close or difflib.get_close_matches(name, _TYPES, n=1, cutoff=0.0)
    raise ConfigError(f"unknown setting {name!r}; did you mean {close[0]!r}?")


def _with_sections(values: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Every section is present, so that a missing required field is named, not its section."""
    sections: dict[str, object] = {
        section: {key: value for key, value in values.get(section, {}).items()}
        for section in _SECTIONS
    }
    if not values.get("distill"):
        # Nothing said about a teacher: plain training.
        del sections["distill"]
    return sections


def error_messages(error: pydantic.ValidationError) -> list[str]:
    """What is wrong with each field, in our own words where a check of ours found it."""
    messages = []
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ValueError):
            messages.append(str(cause))
        else:
            messages.append(f"{place}: {detail['msg']}, got {detail['input']!r}")
    return messages


def field_docs(config_class: type) -> dict[str, str]:
    """The text under each field, those of the classes it builds on among them."""
    docs: dict[str, str] = {}
    for owner in config_class.__mro__[:-1]:
        docs |= _own_field_docs(owner)
    return docs


def _own_field_docs(config_class: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _type_name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required"
