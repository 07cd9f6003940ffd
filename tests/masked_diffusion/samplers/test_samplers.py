"""The samplers' updates against slow per-row references, and their invariants."""

import math
from dataclasses import replace

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

ALGORITHMS = algorithms_for("absorbing")
MASK = 50
EPS = 1e-3


def slow_fraction(step: int, num_steps: int) -> np.float32:
    """Computes r_i in float32 from the schedule's two times, 1 at the last step."""
    if step == num_steps - 1:
        return np.float32(1)
    times = torch.linspace(1, EPS, num_steps + 1).numpy()
    return np.float32(np.float32(1) - times[step + 1] / times[step])


def slow_update(
    x: list[int],
    frozen: list[bool],
    *,
    algorithm: str,
    step: int,
    num_steps: int,
    alg_temp: float,
    order: list[float],
    tokens: list[int],
    confidence: list[float],
) -> list[int]:
    """Takes one step of one row, written from the description of the algorithms."""
    after = list(x)
    masked = [p for p in range(len(x)) if x[p] == MASK and not frozen[p]]
    if algorithm == "origin":
        for p in masked:
            if order[p] < slow_fraction(step, num_steps):
                after[p] = tokens[p]
        return after
    if algorithm == "p2":
        free = [p for p in range(len(x)) if not frozen[p]]
        if not masked:
            return after
        num_remasked = len(free) * (num_steps - step - 1) // num_steps
        by_doubt = sorted(free, key=lambda p: (confidence[p], p))
        for p in masked:
            after[p] = tokens[p]
        for p in by_doubt[:num_remasked]:
            after[p] = MASK
        return after
    score = {p: confidence[p] for p in masked}
    if alg_temp > 0:
        score = {p: confidence[p] / alg_temp - math.log(-math.log(order[p])) for p in masked}
    num_unmasked = int(np.float32(len(masked)) * slow_fraction(step, num_steps))
    for p in sorted(masked, key=lambda p: (-score[p], p))[:num_unmasked]:
        after[p] = tokens[p]
    return after


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
    )


def _decisions(rows: RowBatch, seed: int) -> tuple[Tensor, Tensor]:
    """Draws tokens, and confidences on so coarse a grid that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows.x_BL.shape
    tokens_BL = torch.randint(0, 50, shape, generator=generator)
    return tokens_BL, torch.randint(0, 5, shape, generator=generator) / 4


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
@given(rows=row_batches(), seed=st.integers(0, 1000), alg_temp=st.sampled_from([0.0, 0.5, 3.0]))
def test_an_update_equals_the_slow_reference_row_by_row(
    algorithm: str, rows: RowBatch, seed: int, alg_temp: float
) -> None:
    config = SamplerConfig(algorithm=algorithm, num_steps=1, alg_temp=alg_temp)
    tokens_BL, confidence_BL = _decisions(rows, seed)
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
        expected = slow_update(
            x,
            rows.frozen_BL[b].tolist(),
            algorithm=algorithm,
            step=int(rows.step_B[b]),
            num_steps=int(rows.num_steps_B[b]),
            alg_temp=alg_temp,
            order=order.tolist(),
            tokens=tokens_BL[b].tolist(),
            confidence=confidence_BL[b].tolist(),
        )
        assert after_BL[b].tolist() == expected
    assert torch.equal(rows.x_BL, before_BL), "the state is never changed in place"
    assert after_BL.data_ptr() != rows.x_BL.data_ptr()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(rows=row_batches(), seed=st.integers(0, 1000))
def test_invariants_of_one_step(algorithm: str, rows: RowBatch, seed: int) -> None:
    config = SamplerConfig(algorithm=algorithm, num_steps=1, alg_temp=0.5)
    decided_BL = get_sampler(algorithm).positions_to_decide(rows, config, mask_token_id=MASK)
    after_BL = _update(rows, config, *_decisions(rows, seed))
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
@given(rows=row_batches(), seed=st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_batch(algorithm: str, rows: RowBatch, seed: int) -> None:
    config = SamplerConfig(algorithm=algorithm, num_steps=1, alg_temp=0.5)
    tokens_BL, confidence_BL = _decisions(rows, seed)
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
