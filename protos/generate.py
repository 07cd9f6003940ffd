"""Generates the stubs of `teacher.proto` beside it, or checks that the committed ones are current.

`python -m protos.generate` writes the stubs; with `--check` it writes nothing and exits 1 when the
committed ones are stale.
"""

import argparse
import sys
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent
_PROTO = "protos/teacher.proto"
_STUBS = ("teacher_pb2.py", "teacher_pb2.pyi", "teacher_pb2_grpc.py")


def generate(out_folder: Path) -> None:
    """Runs protoc with its include root at the repository, so stubs import `protos.teacher_pb2`."""
    # The compiler is a development dependency: importing this module must not need it.
    from grpc_tools import protoc  # noqa: PLC0415

    status = protoc.main(
        [
            "protoc",
            f"-I{_FOLDER.parent}",
            f"--python_out={out_folder}",
            f"--pyi_out={out_folder}",
            f"--grpc_python_out={out_folder}",
            _PROTO,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}; see its message above")


def stale_stubs() -> list[str]:
    """Names of committed stubs that differ from what the compiler makes now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [
            name
            for name in _STUBS
            if not (_FOLDER / name).exists()
            or (_FOLDER / name).read_bytes() != (Path(folder) / "protos" / name).read_bytes()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 when stale")
    arguments = parser.parse_args()
    if not arguments.check:
        generate(_FOLDER.parent)
        return 0
    stale = stale_stubs()
    if stale:
        print(f"stale stubs: {', '.join(stale)}; run `make protos` and commit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
