"""Arms are timed in turn, the engine's real step is what is timed."""

import time

import pytest
import torch

from masked_diffusion.families import Denoiser
from teacher_server.autotune_trials import Arm, choose, step_time, take_turns
from teacher_server.config import EngineConfig


def test_the_first_value_within_3_percent_of_the_fastest_median_is_chosen() -> None:
    arms = [
        Arm(option="o", value=1, us_per_token=[1.0, 9.0, 9.0, 9.0]),
        Arm(option="o", value=2, us_per_token=[99.0, 1.02, 1.02, 50.0]),
        Arm(option="o", value=3, us_per_token=[9.0, 1.0, 1.0, 1.0]),
        Arm(option="o", value=4),
    ]
    assert choose(arms) == 2
    arms[1].us_per_token = [1.04] * 4
    assert choose(arms) == 3


def test_arms_take_turns() -> None:
    order: list[object] = []
    arms = [Arm(option="o", value=value) for value in (1, 2)]

    def measure(arm: Arm) -> tuple[float, int]:
        order.append(arm.value)
        return 1e-6, 2

    take_turns(arms, measure, seconds=60)
    assert order[:4] == [1, 2, 1, 2]
    assert arms[0].us_per_token[0] == pytest.approx(0.5)


def test_an_arm_that_would_end_too_late_does_not_begin() -> None:
    arms = [Arm(option="o", value=value) for value in (1, 2, 3)]
    started_s = time.monotonic()
    # Told, not slept: the second would take 40 s, twice the first.
    take_turns(arms, lambda arm: (20.0, 1), seconds=30)
    assert time.monotonic() - started_s < 1
    assert [len(arm.us_per_token) for arm in arms] == [1, 0, 0]


def test_an_arm_that_memory_is_too_small_for_ends_the_arms_there() -> None:
    arms = [Arm(option="o", value=value) for value in (1, 2, 3)]
    asked: list[object] = []

    def measure(arm: Arm) -> tuple[float, int]:
        asked.append(arm.value)
        if arm.value == 2:
            raise torch.OutOfMemoryError("out of memory")
        return 1e-6, 1

    take_turns(arms, measure, seconds=60)
    assert asked[:3] == [1, 2, 1] and 3 not in asked
    assert choose(arms) == 1


@pytest.mark.parametrize("pad_rows", [False, True])
@pytest.mark.parametrize("budget", [7, 1024])
def test_a_step_fills_the_budget(tiny_denoiser: Denoiser, budget: int, pad_rows: bool) -> None:
    config = EngineConfig(max_batch_tokens=budget, pad_rows=pad_rows)
    step_s, num_tokens = step_time(tiny_denoiser, config)
    assert step_s > 0
    # Padded rows of 256, its longest: some of the budget is padding.
    low = budget * 0.9 if pad_rows else budget - 2
    assert low <= num_tokens <= budget + 2
