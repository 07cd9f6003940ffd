"""Values of any origin as JSON has them."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


def json_value(value: object) -> object:
    """Turns a value into what JSON can say.

    Parts are turned one by one, numbers that are not finite become null, and what JSON has no word
    for becomes its text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): json_value(part) for key, part in value.items()}
        case list() | tuple() | set() | np.ndarray():
            return [json_value(part) for part in value]
    return str(value)
