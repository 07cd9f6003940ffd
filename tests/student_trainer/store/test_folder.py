"""Where a store may lie, and what is said where it may not."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from student_trainer import precompute
from student_trainer.store.command import main

PACKAGES = {"s3://bucket/stored": "s3fs", "gs://bucket/stored": "gcsfs"}


@pytest.mark.parametrize("command", ["stats", "verify", "merge"])
def test_an_unknown_protocol_is_refused(capsys, command):
    assert main([command, "foo://stored"]) == 1
    words = f"distill store {command}: the store foo://stored cannot be reached: "
    assert capsys.readouterr().err.startswith(words)


@pytest.mark.parametrize(("url", "package"), PACKAGES.items())
def test_a_protocol_whose_package_is_missing_is_refused_with_its_name(
    capsys, tmp_path: Path, url: str, package: str
):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    assert main(["stats", url]) == 1
    assert package in capsys.readouterr().err
    command = [f"--output_path={url}", f"--data_path={tmp_path}", "--teacher_model_path=teacher"]
    assert precompute.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"distill precompute: the store {url} cannot be reached: ")
    assert package in error
