import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import protos
from protos import generate

FOLDER = Path(protos.__file__).parent
STUBS = ["teacher_pb2.py", "teacher_pb2.pyi", "teacher_pb2_grpc.py"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the package `protos` in it."""
    shutil.copytree(FOLDER, tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # With -m the current folder comes first, so the package that runs is the copy.
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "protos.generate", *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def stubs(folder: Path) -> list[bytes]:
    return [(folder / "protos" / name).read_bytes() for name in STUBS]


def test_the_committed_stubs_are_current():
    assert generate.stale_stubs() == [], "run `make protos` and commit the stubs"


def test_check_passes_on_current_stubs_and_writes_nothing(copied):
    before = sorted(path.name for path in (copied / "protos").glob("*.p*"))

    checked = run(copied, "--check")

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert sorted(path.name for path in (copied / "protos").glob("*.p*")) == before
    assert stubs(copied) == stubs(FOLDER.parent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int32 vocab_size = 5;", "int64 vocab_size = 5;"),
        ("int32 vocab_size = 5;", "int32 num_ids = 5;"),
        ("int32 vocab_size = 5;", "int32 vocab_size = 50;"),
    ],
)
def test_check_fails_on_a_changed_field_and_says_what_to_do(copied, old, new):
    edit(copied / "protos" / "teacher.proto", old, new)

    checked = run(copied, "--check")

    assert checked.returncode == 1
    assert "stale stubs: teacher_pb2.py" in checked.stderr
    assert "make protos" in checked.stderr
    assert stubs(copied) == stubs(FOLDER.parent)


@pytest.mark.parametrize("name", STUBS)
def test_check_names_a_stub_that_was_edited_or_is_missing(copied, name):
    path = copied / "protos" / name
    if name.endswith(".pyi"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\n")

    checked = run(copied, "--check")

    assert checked.returncode == 1
    assert f"stale stubs: {name};" in checked.stderr


def test_generating_mends_stale_stubs(copied):
    edit(copied / "protos" / "teacher.proto", "int32 vocab_size = 5;", "int32 num_ids = 5;")

    generated = run(copied)

    assert (generated.returncode, generated.stderr) == (0, "")
    assert b"num_ids" in (copied / "protos" / "teacher_pb2.pyi").read_bytes()
    assert run(copied, "--check").returncode == 0


def test_a_proto_that_does_not_parse_fails_and_says_where(copied):
    edit(copied / "protos" / "teacher.proto", "int32 vocab_size = 5;", "int32 vocab_size;")

    checked = run(copied, "--check")

    assert checked.returncode == 1
    assert "teacher.proto:" in checked.stderr


def test_an_unknown_argument_is_misuse(copied):
    assert run(copied, "--chekc").returncode == 2
