"""What the packages may import: of each other, and of the packages that pyproject.toml declares."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

ARROWS: dict[str, frozenset[str]] = {
    "protos": frozenset(),
    "masked_diffusion": frozenset(),
    "teacher_server": frozenset({"protos", "masked_diffusion"}),
    "student_trainer": frozenset({"protos", "masked_diffusion"}),
}
"""Each package of ours, with those of ours that it may import."""

FORBIDDEN: dict[str, frozenset[str]] = {
    "protos": frozenset({"torch", "transformers"}),
    "masked_diffusion": frozenset({"grpc"}),
}
"""Third parties that a package must do without: a client of the contract needs no torch."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "protos": (),
    "masked_diffusion": (),
    "teacher_server": ("server",),
    "student_trainer": ("trainer",),
}
"""The extras that are installed where a package runs."""

OPTIONAL = frozenset({"bitsandbytes", "lm_eval", "peft", "pyarrow", "torchao", "wandb"})
"""Imported where it is needed, with an error that says how to install it."""

DEVELOPMENT_FILES = frozenset({"protos/generate.py"})
"""Files that only a developer runs; the dev extra is there for them."""


def imported_modules(source: str) -> Iterator[str]:
    """Yields the absolute module names that a file imports, in any scope, by name or by string.

    A relative import cannot leave its package, so it is passed over.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def imports_of(root: Path, package: str) -> set[tuple[str, str]]:
    """The (file, top-level module) pairs of one package below root."""
    return {
        (path.relative_to(root).as_posix(), module.partition(".")[0])
        for path in (root / package).rglob("*.py")
        for module in imported_modules(path.read_text(encoding="utf-8"))
    }


def broken_arrows(root: Path, package: str) -> list[str]:
    """Says which files of one package import what it must not know about."""
    outside = ARROWS.keys() | {"tests"}
    refused = outside - ARROWS[package] - {package} | FORBIDDEN.get(package, frozenset())
    return sorted(
        f"{file} imports {module}; {package} may import of ours: "
        f"{', '.join(sorted(ARROWS[package])) or 'nothing'}"
        for file, module in imports_of(root, package)
        if module in refused
    )


def declared_distributions(*extras: str) -> set[str]:
    """Canonical names of what is installed for a user who asks for these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_a_package_imports_only_along_the_arrows(package):
    assert imports_of(ROOT, package), f"{package} has no sources below {ROOT}"
    assert broken_arrows(ROOT, package) == []


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_a_package_imports_only_what_its_extras_install(package):
    providers = packages_distributions()
    undeclared = set()
    for file, module in imports_of(ROOT, package):
        if module in sys.stdlib_module_names | ARROWS.keys() | OPTIONAL:
            continue
        extras = ("dev",) if file in DEVELOPMENT_FILES else EXTRAS[package]
        names = {canonicalize_name(name) for name in providers.get(module, [module])}
        if not names & declared_distributions(*extras):
            undeclared.add(f"{file} imports {module}, of {' or '.join(sorted(names))}")
    assert sorted(undeclared) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("student_trainer/trainer.py", "import teacher_server.engine.batcher\n"),
        ("student_trainer/trainer.py", "from teacher_server import engine\n"),
        ("teacher_server/server.py", "def main():\n    from student_trainer import losses\n"),
        ("masked_diffusion/schedule.py", "from protos import codec\n"),
        ("masked_diffusion/families/qwen2.py", "import grpc\n"),
        ("protos/codec.py", "import torch.nn as nn\n"),
        ("protos/codec.py", "if TYPE_CHECKING:\n    from masked_diffusion import schedule\n"),
        ("teacher_server/engine/engine.py", "importlib.import_module('student_trainer.losses')\n"),
        ("teacher_server/server.py", "from tests.conftest import tiny_denoiser\n"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path, file, source):
    write_tree(tmp_path, {file: source})

    (found,) = broken_arrows(tmp_path, file.partition("/")[0])

    assert found.startswith(f"{file} imports ")


def test_imports_along_the_arrows_pass(tmp_path):
    write_tree(
        tmp_path,
        {
            "teacher_server/server.py": "from . import engine\nfrom protos import codec\n",
            "student_trainer/client.py": "import student_trainer.config\nimport masked_diffusion\n",
            "protos/errors.py": "import grpc\nimport numpy as np\n",
        },
    )

    assert [found for package in ARROWS for found in broken_arrows(tmp_path, package)] == []
