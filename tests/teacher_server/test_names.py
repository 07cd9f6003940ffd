from typing import Any

import pytest

from masked_diffusion.samplers import SAMPLERS
from protos import errors
from protos import teacher_pb2 as pb
from teacher_server import names

TABLES: dict[str, tuple[Any, Any]] = {
    "encoding": (names.ENCODINGS, pb.Encoding),
    "dtype": (names.DTYPES, pb.ValueDtype),
    "algorithm": (names.ALGORITHMS, pb.Algorithm),
    "capture": (names.CAPTURES, pb.CaptureKind),
}


@pytest.mark.parametrize("kind", TABLES)
def test_names_and_values_lead_to_each_other(kind: str) -> None:
    table, enum = TABLES[kind]
    for value, name in table.items():
        assert names.name_of(table, value, enum=enum, field="f") == name
        assert names.value_of(table, name) == value
        # The contract spells them alike.
        assert enum.Name(value).endswith(f"_{name.upper()}")


def test_every_sampler_has_its_value() -> None:
    assert set(names.ALGORITHMS.values()) == set(SAMPLERS)


def test_a_value_outside_the_contract_is_invalid_and_one_not_built_is_not_offered() -> None:
    table, enum = TABLES["encoding"]
    for value in (0, 99, -1):
        with pytest.raises(errors.InvalidRequestError, match=f"f must be one of .*got {value}"):
            names.name_of(table, value, enum=enum, field="f")
    with pytest.raises(errors.NotOfferedError, match=r"ENCODING_GATHER is not .*ENCODING_HIDDEN"):
        names.name_of(names.ENCODINGS, pb.ENCODING_GATHER, enum=pb.Encoding, field="f")
