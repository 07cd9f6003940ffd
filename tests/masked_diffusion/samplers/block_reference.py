"""The block samplers' schedule for one row, in lists and loops, from its description."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_ItemT = TypeVar("_ItemT")


@dataclass(frozen=True)
class SlowBlockStep:
    """One step of one row."""

    candidates: list[int]
    count: int
    is_last: bool


def deal(items: Sequence[_ItemT], num_hands: int) -> list[Sequence[_ItemT]]:
    """Cuts items into hands of equal size, the first ones larger by one where it must be."""
    hands, first = [], 0
    for hand in range(num_hands):
        size = len(items) // num_hands + (hand < len(items) % num_hands)
        hands.append(items[first : first + size])
        first += size
    return hands


def slow_block_step(
    masked: Sequence[int],
    frozen: Sequence[bool],
    *,
    step: int,
    num_steps: int,
    block_length: int,
    denoiser_block_length: int | None,
) -> SlowBlockStep:
    """Finds what a step works on: the masked positions, and how many of them are due."""
    free = [p for p in range(len(frozen)) if not frozen[p]]
    if not free:
        return SlowBlockStep([], 0, is_last=False)
    first, size = (0, denoiser_block_length) if denoiser_block_length else (free[0], block_length)
    by_block: dict[int, list[int]] = {}
    for p in free:
        by_block.setdefault((p - first) // size if size else 0, []).append(p)
    num_groups = min(len(by_block), num_steps)
    groups = [
        [p for block in hand for p in block] for hand in deal(list(by_block.values()), num_groups)
    ]
    done: list[int] = []
    for group, steps in zip(groups, deal(range(num_steps), num_groups), strict=True):
        done += group
        if step in steps:
            candidates = [p for p in done if p in masked]
            index = step - steps[0]
            is_last = index == len(steps) - 1
            due = len(candidates) if is_last else len(deal(group, len(steps))[index])
            return SlowBlockStep(candidates, min(due, len(candidates)), is_last=is_last)
    raise AssertionError("every step has its block")
