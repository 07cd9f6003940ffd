"""Values of any origin, as strict JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from student_trainer.evaluation.json_values import json_value


@dataclass
class Found:
    value: float
    parts: tuple[object, ...]


def test_everything_becomes_strict_json():
    values = {
        1: Found(value=float("nan"), parts=(np.float32(0.5), np.int64(3), True, None)),
        "array": np.array([[1.0, -np.inf], [2.0, 3.0]]),
        "path": Path("a/b"),
        "set": {"x"},
    }

    found = json.loads(json.dumps(json_value(values), allow_nan=False))

    assert found == {
        "1": {"value": None, "parts": [0.5, 3, True, None]},
        "array": [[1.0, None], [2.0, 3.0]],
        "path": "a/b",
        "set": ["x"],
    }
