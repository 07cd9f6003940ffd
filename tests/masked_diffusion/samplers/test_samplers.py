"""The samplers' updates against slow per-row references, and their invariants."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.samplers import (
    RowBatch,
    SamplerConfig,
    algorithms_for,
    get_sampler,
)
from masked_diffusion.samplers.config import BLOCK_ALGORITHMS
from tests.masked_diffusion.samplers.block_reference import slow_block_step
from tests.sampler_choices import choices

ALGORITHMS = algorithms_for("absorbing")
MASK = 50
EPS = 1e-3


def slow_fraction(step: int, num_steps: int) -> np.float32:
    """Computes r_i in float32 from the schedule's two times, 1 at the last step."""
    if step == num_steps - 1:
        return np.float32(1)
    times = torch.linspace(1, EPS, num_steps + 1).numpy()
    return np.float32(np.float32(1) - times[step + 1] / times[step])


@dataclass(frozen=True)
class SlowRow:
    """One row at a step, with what the denoiser and the keyed draws say about it."""

    x: list[int]
    frozen: list[bool]
    step: int
    num_steps: int
    denoiser_block_length: int | None
    order: list[float]
    tokens: list[int]
    confidence: list[float]

    @property
    def masked(self) -> list[int]:
        """Positions still to be unmasked."""
        return [p for p in range(len(self.x)) if self.x[p] == MASK and not self.frozen[p]]

    def filled(self, positions: Iterable[int]) -> list[int]:
        """The state with its drawn tokens at some positions."""
        chosen = set(positions)
        return [self.tokens[p] if p in chosen else self.x[p] for p in range(len(self.x))]


def slow_origin(row: SlowRow, config: SamplerConfig) -> list[int]:
    fraction = slow_fraction(row.step, row.num_steps)
    return row.filled(p for p in row.masked if row.order[p] < fraction)


def slow_ancestral(row: SlowRow, config: SamplerConfig) -> list[int]:
    if row.step == row.num_steps - 1:
        return row.filled(row.masked)
    times = torch.linspace(1, EPS, row.num_steps).numpy()
    stays = float(np.float32(times[row.step + 1] / times[row.step]))
    return row.filled(p for p in row.masked if row.order[p] < 1 - stays)


def slow_p2(row: SlowRow, config: SamplerConfig) -> list[int]:
    if not row.masked:
        return list(row.x)
    free = [p for p in range(len(row.x)) if not row.frozen[p]]
    num_remasked = len(free) * (row.num_steps - row.step - 1) // row.num_steps
    after = row.filled(row.masked)
    for p in sorted(free, key=lambda p: (row.confidence[p], p))[:num_remasked]:
        after[p] = MASK
    return after


def slow_confidence(row: SlowRow, config: SamplerConfig) -> list[int]:
    score = {p: row.confidence[p] for p in row.masked}
    if config.alg_temp > 0:
        for p in row.masked:
            score[p] = row.confidence[p] / config.alg_temp - math.log(-math.log(row.order[p]))
    count = int(np.float32(len(row.masked)) * slow_fraction(row.step, row.num_steps))
    return row.filled(sorted(row.masked, key=lambda p: (-score[p], p))[:count])


def slow_block(row: SlowRow, config: SamplerConfig) -> list[int]:
    step = slow_block_step(
        row.masked,
        row.frozen,
        step=row.step,
        num_steps=row.num_steps,
        block_length=config.block_length,
        denoiser_block_length=row.denoiser_block_length,
    )
    score = row.order if config.algorithm == "random" else row.confidence
    order = sorted(step.candidates, key=lambda p: (-score[p], p))
    count = step.count
    if config.algorithm == "low_confidence_dynamic":
        count = max(count, sum(row.confidence[p] > config.threshold for p in order))
    if config.algorithm == "entropy_bounded" and not step.is_last:
        entropies = [-row.confidence[p] for p in order]
        runs = range(1, len(order) + 1)
        count = max(
            (n for n in runs if sum(entropies[:n]) - entropies[n - 1] <= config.entropy_bound),
            default=0,
        )
    return row.filled(order[:count])


SLOW: dict[str, Callable[[SlowRow, SamplerConfig], list[int]]] = {
    "origin": slow_origin,
    "maskgit_plus": slow_confidence,
    "topk_margin": slow_confidence,
    "entropy": slow_confidence,
    "p2": slow_p2,
    "low_confidence": slow_block,
    "random": slow_block,
    "low_confidence_dynamic": slow_block,
    "entropy_bounded": slow_block,
    "ancestral": slow_ancestral,
}


@st.composite
def configs(draw: st.DrawFn, algorithm: str) -> SamplerConfig:
    """Draws the choices that an algorithm uses."""
    fields: dict[str, float] = {"alg_temp": draw(st.sampled_from([0.0, 0.5, 3.0]))}
    if algorithm in BLOCK_ALGORITHMS:
        fields["block_length"] = draw(st.integers(0, 4))
    if algorithm == "low_confidence_dynamic":
        fields["threshold"] = draw(st.sampled_from([0.25, 0.6, 1.0]))
    if algorithm == "entropy_bounded":
        fields["entropy_bound"] = draw(st.sampled_from([0.0, 0.5, 1.25, 100.0]))
    return SamplerConfig(algorithm=algorithm, num_steps=1, **fields)  # type: ignore[arg-type]


@st.composite
def row_batches(draw: st.DrawFn) -> RowBatch:
    """Draws rows of random content, frozen parts and steps, padded ones and finished ones too."""
    num_rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 10))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    x_BL = torch.randint(0, 50, (num_rows, length), generator=generator)
    x_BL[torch.rand(num_rows, length, generator=generator) < draw(st.floats(0, 1))] = MASK
    num_steps = draw(st.lists(st.integers(1, 12), min_size=num_rows, max_size=num_rows))
    steps = [draw(st.integers(0, count - 1)) for count in num_steps]
    return RowBatch(
        x_BL=x_BL,
        frozen_BL=torch.rand(num_rows, length, generator=generator) < draw(st.floats(0, 1)),
        step_B=torch.tensor(steps),
        num_steps_B=torch.tensor(num_steps),
        seeds=[seed] * num_rows,
        sequence_ids=list(range(num_rows)),
        denoiser_block_length=draw(st.sampled_from([None, None, 1, 3])),
    )


def _decisions(rows: RowBatch, seed: int, algorithm: str) -> tuple[Tensor, Tensor]:
    """Draws tokens, and confidences on so coarse a grid that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows.x_BL.shape
    tokens_BL = torch.randint(0, 50, shape, generator=generator)
    confidence_BL = torch.randint(0, 5, shape, generator=generator) / 4
    is_entropy = get_sampler(algorithm).confidence.endswith("negative_entropy")
    return tokens_BL, confidence_BL - float(is_entropy)


def _update(
    rows: RowBatch, config: SamplerConfig, tokens_BL: Tensor, confidence_BL: Tensor
) -> Tensor:
    sampler = get_sampler(config.algorithm)
    decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=MASK)
    return sampler.update(
        rows,
        config,
        mask_token_id=MASK,
        decided_BL=decided_BL,
        tokens_BL=tokens_BL.masked_fill(~decided_BL, -1),
        confidence_BL=confidence_BL.masked_fill(~decided_BL, float("nan")),
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data(), rows=row_batches(), seed=st.integers(0, 1000))
def test_an_update_equals_the_slow_reference_row_by_row(
    algorithm: str, data: st.DataObject, rows: RowBatch, seed: int
) -> None:
    config = data.draw(configs(algorithm))
    tokens_BL, confidence_BL = _decisions(rows, seed, algorithm)
    before_BL = rows.x_BL.clone()
    after_BL = _update(rows, config, tokens_BL, confidence_BL)
    for b, x in enumerate(before_BL.tolist()):
        order = keyed_uniforms(
            seed=rows.seeds[b],
            sequence_id=rows.sequence_ids[b],
            step=int(rows.step_B[b]),
            length=len(x),
            stream="order",
        )
        row = SlowRow(
            x=x,
            frozen=rows.frozen_BL[b].tolist(),
            step=int(rows.step_B[b]),
            num_steps=int(rows.num_steps_B[b]),
            denoiser_block_length=rows.denoiser_block_length,
            order=order.tolist(),
            tokens=tokens_BL[b].tolist(),
            confidence=confidence_BL[b].tolist(),
        )
        assert after_BL[b].tolist() == SLOW[algorithm](row, config)
    assert torch.equal(rows.x_BL, before_BL), "the state is never changed in place"
    assert after_BL.data_ptr() != rows.x_BL.data_ptr()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data(), rows=row_batches(), seed=st.integers(0, 1000))
def test_invariants_of_one_step(
    algorithm: str, data: st.DataObject, rows: RowBatch, seed: int
) -> None:
    config = data.draw(configs(algorithm))
    decided_BL = get_sampler(algorithm).positions_to_decide(rows, config, mask_token_id=MASK)
    after_BL = _update(rows, config, *_decisions(rows, seed, algorithm))
    masked_BL = rows.masked(mask_token_id=MASK)
    left_BL = (after_BL == MASK) & ~rows.frozen_BL
    last_B = rows.step_B == rows.num_steps_B - 1

    assert torch.equal(after_BL[rows.frozen_BL], rows.x_BL[rows.frozen_BL])
    assert not bool(decided_BL[rows.frozen_BL].any())
    idle_B = ~decided_BL.any(1)
    assert torch.equal(after_BL[idle_B], rows.x_BL[idle_B])
    assert bool(idle_B[~masked_BL.any(1)].all()), "a row without a mask needs no forward"
    assert not bool(left_BL[last_B].any()), "the last step leaves no mask"
    if algorithm != "p2":
        assert not bool((left_BL & ~masked_BL).any()), "nothing is remasked"
        assert not bool((decided_BL & ~masked_BL).any())
    else:
        free_B = (~rows.frozen_BL).sum(1)
        planned_B = free_B * (rows.num_steps_B - rows.step_B - 1) // rows.num_steps_B
        live_B = masked_BL.any(1)
        assert torch.equal(left_BL.sum(1)[live_B], planned_B[live_B])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data(), rows=row_batches(), seed=st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_batch(
    algorithm: str, data: st.DataObject, rows: RowBatch, seed: int
) -> None:
    config = data.draw(configs(algorithm))
    tokens_BL, confidence_BL = _decisions(rows, seed, algorithm)
    together_BL = _update(rows, config, tokens_BL, confidence_BL)
    for b in range(len(rows.seeds)):
        row = slice(b, b + 1)
        alone = replace(
            rows,
            x_BL=rows.x_BL[row],
            frozen_BL=rows.frozen_BL[row],
            step_B=rows.step_B[row],
            num_steps_B=rows.num_steps_B[row],
            seeds=rows.seeds[row],
            sequence_ids=rows.sequence_ids[row],
        )
        alone_BL = _update(alone, config, tokens_BL[row], confidence_BL[row])
        assert torch.equal(alone_BL[0], together_BL[b])


def _fresh_rows(num_rows: int, length: int, *, step: int, num_steps: int, x_BL: Tensor) -> RowBatch:
    return RowBatch(
        x_BL=x_BL,
        frozen_BL=torch.zeros(num_rows, length, dtype=torch.bool),
        step_B=torch.full((num_rows,), step),
        num_steps_B=torch.full((num_rows,), num_steps),
        seeds=[0] * num_rows,
        sequence_ids=list(range(num_rows)),
    )


def test_origin_masks_as_many_as_the_schedule_says_on_average() -> None:
    num_rows, length, num_steps = 400, 50, 8
    config = SamplerConfig(algorithm="origin", num_steps=num_steps)
    x_BL = torch.full((num_rows, length), MASK)
    times = torch.linspace(1, EPS, num_steps + 1)
    for step in range(num_steps):
        rows = _fresh_rows(num_rows, length, step=step, num_steps=num_steps, x_BL=x_BL)
        x_BL = _update(rows, config, torch.zeros_like(x_BL), torch.zeros(x_BL.shape))
        share = (x_BL == MASK).double().mean().item()
        if step == num_steps - 1:
            assert share == 0
            return
        expected = times[step + 1].item()
        # Every position is still masked with probability t, on its own: a binomial share.
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / x_BL.numel())


def test_gumbel_noise_samples_positions_without_replacement() -> None:
    """The first position drawn follows softmax(confidence / alg_temp)."""
    num_rows, alg_temp = 20_000, 0.5
    confidence = torch.tensor([0.9, 0.5, 0.1, 0.7])
    config = SamplerConfig(algorithm="maskgit_plus", num_steps=4, alg_temp=alg_temp)
    x_BL = torch.full((num_rows, 4), MASK)
    # Step 1 of 4 with 4 masked positions: trunc(4 * 0.333) = 1 is unmasked.
    rows = _fresh_rows(num_rows, 4, step=1, num_steps=4, x_BL=x_BL)
    after_BL = _update(rows, config, torch.zeros_like(x_BL), confidence.expand(num_rows, -1))
    assert torch.equal((after_BL != MASK).sum(1), torch.ones(num_rows, dtype=torch.int64))
    share = (after_BL != MASK).double().mean(0)
    p = torch.softmax(confidence.double() / alg_temp, 0)
    # Four standard deviations of a binomial share.
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / num_rows).sqrt()).all())


def test_p2_takes_scores_that_are_not_finite_for_sure() -> None:
    """Even where they must be remasked, no frozen position is taken in their place."""
    confidence_BL = torch.tensor([[0.0, float("nan"), 0.2, float("inf")]])
    for num_steps, expected in ((2, [7, 2, MASK, 4]), (3, [7, MASK, MASK, 4])):
        x_BL = torch.tensor([[7, MASK, MASK, MASK]])
        rows = _fresh_rows(1, 4, step=0, num_steps=num_steps, x_BL=x_BL)
        rows.frozen_BL[0, 0] = True
        config = SamplerConfig(algorithm="p2", num_steps=num_steps)
        after_BL = _update(rows, config, torch.tensor([[1, 2, 3, 4]]), confidence_BL)
        assert after_BL.tolist() == [expected]


def test_ancestral_masks_as_many_as_the_absorbing_process_on_average() -> None:
    num_rows, length, num_steps = 400, 50, 8
    config = SamplerConfig(algorithm="ancestral", num_steps=num_steps)
    x_BL = torch.full((num_rows, length), MASK)
    times = get_sampler("ancestral").times(config)
    assert times[0].item() == 1.0
    assert times[-1].item() == pytest.approx(EPS)
    for step in range(num_steps):
        expected, share = times[step].item(), (x_BL == MASK).double().mean().item()
        # The state that a step begins with has a binomial share of masks.
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / x_BL.numel())
        rows = _fresh_rows(num_rows, length, step=step, num_steps=num_steps, x_BL=x_BL)
        x_BL = _update(rows, config, torch.zeros_like(x_BL), torch.zeros(x_BL.shape))
    assert not bool((x_BL == MASK).any())


@given(
    entropies=st.lists(st.integers(0, 8).map(lambda n: n / 4), min_size=1, max_size=12),
    bound=st.sampled_from([0.0, 0.25, 1.0, 2.5]),
)
def test_what_is_unmasked_together_keeps_the_entropy_bound(
    entropies: list[float], bound: float
) -> None:
    config = SamplerConfig(algorithm="entropy_bounded", num_steps=20, entropy_bound=bound)
    x_BL = torch.full((1, len(entropies)), MASK)
    rows = _fresh_rows(1, len(entropies), step=0, num_steps=20, x_BL=x_BL)
    after_BL = _update(rows, config, torch.zeros_like(x_BL), -torch.tensor([entropies]))
    taken = [h for h, token in zip(entropies, after_BL[0].tolist(), strict=True) if token != MASK]
    left = [h for h, token in zip(entropies, after_BL[0].tolist(), strict=True) if token == MASK]
    assert taken and sum(taken) - max(taken) <= bound
    # With one more, the least of the rest, it would be broken.
    assert not left or (min(left) >= max(taken) and sum(taken) > bound)


def test_only_ancestral_ends_greedily_and_has_times_of_its_own() -> None:
    for algorithm in ALGORITHMS:
        sampler = get_sampler(algorithm)
        config = SamplerConfig(algorithm=algorithm, num_steps=5, **choices(algorithm))  # type: ignore[arg-type]
        assert sampler.ends_greedily == (algorithm == "ancestral")
        last = 4 if algorithm == "ancestral" else 5
        expected = torch.linspace(1, EPS, last + 1)[:5]
        assert torch.equal(sampler.times(config), expected)
