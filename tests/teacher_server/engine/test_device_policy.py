import math

import torch

from teacher_server.engine.device_policy import float32_speedup, to_device, to_host


def test_copies_on_a_cpu_are_the_tensor_itself() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert to_device(tensor, torch.device("cpu")) is tensor
    assert to_host(tensor) is tensor


def test_a_format_is_compared_with_float32_by_measurement() -> None:
    # The same work twice: on a busy machine the ratio may be off, never by a hundred.
    assert 0.01 < float32_speedup(torch.float32) < 100
    assert math.isfinite(float32_speedup(torch.bfloat16))
