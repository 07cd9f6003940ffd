"""Times the engine's own step under different options: arms take turns, medians are compared."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.samplers import SamplerConfig
from teacher_server.config import EngineConfig
from teacher_server.engine.counters import EngineCounters
from teacher_server.engine.model_runner import ModelRunner
from teacher_server.engine.sequence import Capture, Request, Row, TargetSpec
from teacher_server.engine.step import DenoisingStep
from teacher_server.engine.stream import OutputWindow

TOLERANCE = 0.03
"""An earlier arm is taken where it is within this of the fastest."""
_LENGTHS = (32, 128, 256, 384, 512, 192, 64, 320)
# As much attention a token as those have, and the padding that the batcher leaves, about 6 %.
_PADDED_LENGTHS = (340, 300)
_MAX_ROUNDS = 9


@dataclass(kw_only=True)
class Arm:
    """One value of one option."""

    option: str
    value: int | bool
    us_per_token: list[float] = field(default_factory=list)
    """Of every repetition, the first one left out where there are more."""

    @property
    def median_us(self) -> float:
        """Microseconds a token."""
        return statistics.median(self.us_per_token[1:] or self.us_per_token)


def choose(arms: Sequence[Arm]) -> int | bool:
    """The first value, of those that were measured, within `TOLERANCE` of the fastest."""
    measured = [arm for arm in arms if arm.us_per_token]
    best_us = min(arm.median_us for arm in measured)
    return next(arm.value for arm in measured if arm.median_us <= best_us * (1 + TOLERANCE))


def take_turns(
    arms: Sequence[Arm], measure: Callable[[Arm], tuple[float, int]], *, seconds: float
) -> None:
    """Repeats all arms in turn while time is left; the first arm runs once whatever it takes.

    Args:
        arms: The one that takes least time first.
        measure: Seconds and tokens of one step.
        seconds: No arm begins that would probably end later, nor one for which memory is short.
    """
    end_s = time.monotonic() + seconds
    longest_s: dict[int, float] = {}
    for _ in range(_MAX_ROUNDS):
        for index, arm in enumerate(arms):
            # An arm that never ran: as long as the one before, twice as long with its growth.
            expected_s = longest_s.get(index, 2 * longest_s.get(index - 1, 0.0))
            if longest_s and time.monotonic() + expected_s > end_s:
                return
            try:
                step_s, num_tokens = measure(arm)
            except torch.OutOfMemoryError:
                if index == 0:
                    raise
                # Nor would those that take more.
                for larger in arms[index:]:
                    larger.us_per_token.clear()
                arms = arms[:index]
                break
            longest_s[index] = max(step_s, longest_s.get(index, 0.0))
            arm.us_per_token.append(1e6 * step_s / num_tokens)


def step_time(denoiser: Denoiser, config: EngineConfig) -> tuple[float, int]:
    """Seconds and tokens of one step of typical rows that fill the budget, head and draw included.

    Rows of 32 to 512 tokens, half of them masked and decided; nothing is captured.
    """
    runner = ModelRunner(
        denoiser,
        max_head_elements=config.max_head_elements,
        pad_rows=config.pad_rows,
        compiles=config.compile,
    )
    step = DenoisingStep(
        runner, EngineCounters(), revision="", max_cache_bytes=config.max_cache_bytes
    )
    rows = _rows(denoiser.info, config, pads=not runner.packs_rows)
    step.seek(rows)
    started_s = time.perf_counter()
    step.run(rows)
    if denoiser.device.type == "cuda":
        torch.cuda.synchronize(denoiser.device)
    return time.perf_counter() - started_s, sum(row.length for row in rows)


def _rows(info: DenoiserInfo, config: EngineConfig, *, pads: bool) -> list[Row]:
    request = Request(
        request_id="autotune",
        client_id="autotune",
        kind="trajectory",
        deadline_s=float("inf"),
        targets=TargetSpec(encoding="hidden", dtype="f32"),
        capture=Capture(),
        sampler=SamplerConfig(
            algorithm="multinomial" if info.noise == "uniform" else "low_confidence",
            num_steps=8,
            temperature=0.7,
        ),
        # Nothing is captured, so nothing comes.
        stream=OutputWindow(window_bytes=1, on_room=lambda: None),
    )
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    left = config.max_batch_tokens
    lengths = _PADDED_LENGTHS if pads else _LENGTHS
    longest = min(max(lengths), info.max_length)
    while not rows or left >= (longest if pads else 1):
        length = max(2, min(lengths[len(rows) % len(lengths)], info.max_length, left))
        left -= longest if pads else length
        ids_L = torch.randint(info.vocab_size, (length,), generator=generator)
        frozen_L = torch.rand(length, generator=generator) < 0.5  # noqa: PLR2004
        frozen_L[0], frozen_L[-1] = True, False
        rows.append(
            Row(
                request=request,
                sequence_id=len(rows),
                x_L=ids_L if info.noise == "uniform" else _masked(ids_L, frozen_L, info),
                frozen_L=frozen_L,
                num_steps=8,
                unmask_steps_L=np.full(length, -1, dtype=np.int32),
            )
        )
    return rows


def _masked(ids_L: torch.Tensor, frozen_L: torch.Tensor, info: DenoiserInfo) -> torch.Tensor:
    return ids_L.where(frozen_L, torch.full_like(ids_L, info.mask_token_id))
