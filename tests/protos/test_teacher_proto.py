"""The rules that the contract keeps, read off its descriptor with the comments in it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from protos import errors
from protos import teacher_pb2 as pb

ROOT = Path(pb.__file__).parent.parent
UNSIGNED = {Field.TYPE_UINT32, Field.TYPE_UINT64, Field.TYPE_FIXED32, Field.TYPE_FIXED64}


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    path = tmp_path_factory.mktemp("contract") / "teacher.binpb"
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            "--include_source_info",
            f"--descriptor_set_out={path}",
            "protos/teacher.proto",
        ]
    )
    assert status == 0
    (contract,) = FileDescriptorSet.FromString(path.read_bytes()).file
    return contract


def elements(contract: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Everything that has a name, with its path as SourceCodeInfo writes it."""
    file = FileDescriptorProto.DESCRIPTOR.fields_by_name
    for index, message in enumerate(contract.message_type):
        assert not message.nested_type, "nested messages are not walked"
        assert not message.enum_type, "nested enums are not walked"
        path = (file["message_type"].number, index)
        yield message.name, path
        field_number = message.DESCRIPTOR.fields_by_name["field"].number
        for place, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (*path, field_number, place)
    for index, enum in enumerate(contract.enum_type):
        path = (file["enum_type"].number, index)
        yield enum.name, path
        value_number = enum.DESCRIPTOR.fields_by_name["value"].number
        for place, value in enumerate(enum.value):
            yield value.name, (*path, value_number, place)
    for index, service in enumerate(contract.service):
        path = (file["service"].number, index)
        yield service.name, path
        method_number = service.DESCRIPTOR.fields_by_name["method"].number
        for place, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (*path, method_number, place)


def test_everything_in_the_contract_has_a_comment(contract):
    comments = {
        tuple(location.path): location.leading_comments.strip()
        for location in contract.source_code_info.location
    }
    named = dict(elements(contract))

    assert len(named) > 150
    assert [name for name, path in named.items() if not comments.get(path)] == []


def test_comments_are_sentences(contract):
    comments = {
        tuple(location.path): location.leading_comments.strip()
        for location in contract.source_code_info.location
    }

    assert [name for name, path in elements(contract) if not comments[path].endswith(".")] == []


def test_enums_start_at_unspecified(contract):
    for enum in contract.enum_type:
        first = enum.value[0]
        assert first.number == 0
        assert first.name.endswith("_UNSPECIFIED")


def test_no_number_is_unsigned_but_checksums(contract):
    unsigned = [
        (f"{message.name}.{field.name}", field.type)
        for message in contract.message_type
        for field in message.field
        if field.type in UNSIGNED
    ]

    assert unsigned == [
        (f"{name}.crc32c", Field.TYPE_FIXED32)
        for name in ("TargetsPart", "GetHeadResponse", "SwapWeightsRequest")
    ]


def test_the_contract_imports_nothing_and_its_package_is_the_domain_of_errors(contract):
    assert list(contract.dependency) == []
    assert contract.syntax == "proto3"
    assert contract.package == errors.DOMAIN


def test_buf_finds_nothing_to_mend():
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf, "run `make setup` again"

    linted = subprocess.run(
        [buf, "lint"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )

    assert (linted.returncode, linted.stdout) == (0, "")
