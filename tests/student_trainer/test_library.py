"""The names of the library: there, documented, and free until they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import student_trainer

MANUAL = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.mark.parametrize("name", student_trainer.__all__)
def test_a_public_name_is_there_and_in_the_manual(name: str) -> None:
    assert (getattr(student_trainer, name).__doc__ or "").strip()
    assert f"`{name}`" in MANUAL.read_text(encoding="utf-8")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'student_trainer' has no attribute 'Teacher'"):
        _ = student_trainer.Teacher


def test_the_package_alone_imports_no_torch() -> None:
    program = "import student_trainer, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
