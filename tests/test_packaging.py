"""What a user installs: the project file, the built wheel, the changelog and the constraints."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("masked_diffusion", "protos", "student_trainer", "teacher_server")


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pinned() -> dict[str, str]:
    """Name and exact version of each line of constraints.txt; anything but == is an error."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = {}
    for name, requirement in requirements(lines).items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not an exact version"
        pins[name] = specifier.version
    return pins


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel as a release builds it, with the backend that is installed: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_a_console_script_names_a_function(script):
    function = EntryPoint(script, PROJECT["scripts"][script], "console_scripts").load()

    assert callable(function)


def test_the_installed_version_is_that_of_the_project_file():
    assert metadata.version(PROJECT["name"]) == PROJECT["version"], "run `make setup` again"


def test_the_changelog_starts_with_unreleased_and_its_newest_release_is_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    first, *releases = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)

    assert first == "Unreleased"
    assert releases[:1] in ([], [PROJECT["version"]])


def test_the_constraints_pin_torch_within_what_the_project_asks_for():
    pins = pinned()
    needed = requirements(PROJECT["dependencies"])

    assert "torch" in pins
    for name, version in pins.items():
        assert needed[name].specifier.contains(version)


def test_the_project_sets_torch_no_upper_bound():
    torch = requirements(PROJECT["dependencies"])["torch"]

    assert {specifier.operator for specifier in torch.specifier} == {">="}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert packed == {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.mark.parametrize(
    "pattern",
    [
        r"protos/teacher\.proto",
        r"protos/teacher_pb2\.pyi",
        r"student_trainer/configs/.+\.yaml",
        r"student_trainer/.+\.html\.j2",
        r".+\.dist-info/licenses/LICENSE",
    ],
)
def test_the_wheel_holds_the_data_that_is_read_at_run_time(wheel, pattern):
    with zipfile.ZipFile(wheel) as archive:
        assert any(re.fullmatch(pattern, name) for name in archive.namelist())
