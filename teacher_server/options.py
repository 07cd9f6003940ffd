"""Command-line options made from configuration dataclasses, so that no default is said twice."""

import argparse
import ast
import dataclasses
import inspect
import textwrap
from typing import Any, TypeVar

_ConfigT = TypeVar("_ConfigT")


def field_docs(config_class: type) -> dict[str, str]:
    """The text under each field of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[field.target.id] = inspect.cleandoc(str(text.value.value))
    return docs


def add_options(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Adds one option per field; its help is the text under the field."""
    docs = field_docs(config_class)
    group = parser.add_argument_group((config_class.__doc__ or "").strip())
    for field in dataclasses.fields(config_class):
        name = f"--{field.name.replace('_', '-')}"
        text = f"{docs[field.name]} (default: {field.default})".replace("%", "%%")
        if field.type is bool:
            group.add_argument(name, action="store_true", help=text)
        else:
            kind: Any = field.type
            group.add_argument(name, type=kind, default=field.default, help=text)


def read_options(options: argparse.Namespace, config_class: type[_ConfigT]) -> _ConfigT:
    """Builds the configuration; raises its ValueError where a value is not allowed."""
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(options, name) for name in names})
