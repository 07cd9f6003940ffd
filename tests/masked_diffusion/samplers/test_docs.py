"""docs/samplers.md has a section for each algorithm and a line for each choice."""

import dataclasses
import re
from pathlib import Path

from masked_diffusion.samplers import ALGORITHMS, SamplerConfig
from protos import teacher_pb2 as pb
from student_trainer.config import DistillConfig

TEXT = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text(encoding="utf-8")


def test_every_algorithm_has_a_section() -> None:
    headings = " ".join(re.findall(r"^## .*$", TEXT, flags=re.MULTILINE))
    assert [name for name in ALGORITHMS if f"`{name}`" not in headings] == []


def test_every_choice_is_in_the_table() -> None:
    table = " ".join(line for line in TEXT.splitlines() if line.startswith("|"))
    keys = [field.name for field in dataclasses.fields(DistillConfig)]
    wanted = [
        *(field.name for field in dataclasses.fields(SamplerConfig)),
        *pb.SamplerSpec.DESCRIPTOR.fields_by_name,
        *(f"distill.{key}" for key in keys if key.startswith("diffusion_")),
    ]
    assert [name for name in wanted if f"`{name}`" not in table] == []
    # And the trainer's keys of the table are keys.
    named = re.findall(r"`distill\.(\w+)`", table)
    assert sorted(set(named) - set(keys)) == []
