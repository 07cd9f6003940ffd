"""The posterior against the chain it belongs to, and the sampler that draws from it."""

import itertools

import pytest
import torch
from torch import Tensor

from masked_diffusion import schedule
from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers import (
    DecidedPositions,
    RowBatch,
    SamplerConfig,
    algorithms_for,
    get_sampler,
)
from masked_diffusion.samplers.multinomial import Multinomial, posterior, x0_probabilities

VOCAB_SIZE, MASK = 6, 2
NUM_STEPS, EPS = 5, 0.05
SUPPORT = [v for v in range(VOCAB_SIZE) if v != MASK]


def _kernel(t_from: float, t_to: float) -> Tensor:
    """[V, V] float64 transition of the chain between two times; the mask stays where it is."""
    kept = (1 - t_to) / (1 - t_from)
    kernel = torch.zeros(VOCAB_SIZE, VOCAB_SIZE, dtype=torch.float64)
    for before in SUPPORT:
        for after in SUPPORT:
            kernel[before, after] = kept * (before == after) + (1 - kept) / len(SUPPORT)
    kernel[MASK, MASK] = 1
    return kernel


def _chain_posterior(x0_V: Tensor, x_t: int, *, step: int) -> Tensor:
    """Joint of the whole path of per-step kernels from x0, summed over x0, given x_t."""
    times = [0.0, *schedule.timesteps(NUM_STEPS, eps=EPS).double().flip(0).tolist()]
    index_of_t = len(times) - 1 - step
    to_s = torch.eye(VOCAB_SIZE, dtype=torch.float64)
    for first, second in itertools.pairwise(times[:index_of_t]):
        to_s = to_s @ _kernel(first, second)
    joint_V = (x0_V @ to_s) * _kernel(times[index_of_t - 1], times[index_of_t])[:, x_t]
    return joint_V / joint_V.sum()


def _positions(tokens: list[int], step: int, uniforms: Tensor | None = None) -> DecidedPositions:
    count = len(tokens)
    return DecidedPositions(
        uniforms_M=torch.full((count,), 0.5, dtype=torch.float64) if uniforms is None else uniforms,
        token_ids_M=torch.tensor(tokens),
        step_M=torch.full((count,), step),
        num_steps_M=torch.full((count,), NUM_STEPS),
    )


def _x0(certain: bool) -> Tensor:
    """[V] float64 probabilities, 0 at the mask."""
    if certain:
        return torch.eye(VOCAB_SIZE, dtype=torch.float64)[4]
    x0_V = torch.tensor([0.5, 0.05, 0, 0.2, 0.15, 0.1], dtype=torch.float64)
    assert float(x0_V.sum()) == pytest.approx(1)
    return x0_V


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_the_posterior_is_that_of_the_markov_chain(step: int, certain: bool) -> None:
    times = schedule.timesteps(NUM_STEPS, eps=EPS)
    x0_V = _x0(certain)
    support_MV = torch.ones(len(SUPPORT), VOCAB_SIZE, dtype=torch.bool)
    support_MV[:, MASK] = False
    actual_MV = posterior(
        x0_V.expand(len(SUPPORT), -1),
        torch.tensor(SUPPORT),
        t_M=times[step].expand(len(SUPPORT)),
        s_M=times[step + 1].expand(len(SUPPORT)),
        support_MV=support_MV,
    )
    expected_MV = torch.stack([_chain_posterior(x0_V, x_t, step=step) for x_t in SUPPORT])
    # Times are float32 on both sides; what is left is the order of float64 sums.
    torch.testing.assert_close(actual_MV, expected_MV, atol=1e-12, rtol=1e-9)
    assert not bool(actual_MV[:, MASK].any())


def _logits(x0_V: Tensor, count: int) -> Tensor:
    logits_V = x0_V.log().float()
    logits_V[MASK] = EXCLUDED_LOGIT
    return logits_V.expand(count, -1)


def test_tokens_are_drawn_as_often_as_the_posterior_says() -> None:
    config = SamplerConfig(algorithm="multinomial", num_steps=NUM_STEPS, temperature=1.0, eps=EPS)
    count, step, x_t = 20_000, 2, 3
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x0_V = _x0(certain=False)
    samples = Multinomial().draw(
        _logits(x0_V, count), config=config, positions=_positions([x_t] * count, step, uniforms)
    )
    share_V = torch.bincount(samples.token_ids_M, minlength=VOCAB_SIZE).double() / count
    expected_V = _chain_posterior(x0_V, x_t, step=step)
    # A grid of uniforms misses each id's share by at most two of its cells.
    assert float((share_V - expected_V).abs().max()) <= 2 / count
    torch.testing.assert_close(
        samples.confidence_M.double(), expected_V[samples.token_ids_M], atol=1e-6, rtol=0
    )


def test_the_last_step_draws_what_the_denoiser_says_whatever_is_there() -> None:
    x0_V = _x0(certain=False)
    likeliest, drawn = (
        Multinomial()
        .draw(
            _logits(x0_V, 3),
            config=SamplerConfig(
                algorithm="multinomial", num_steps=NUM_STEPS, temperature=temperature, eps=EPS
            ),
            positions=_positions(
                [1, 3, 5], NUM_STEPS - 1, torch.tensor([0.1, 0.6, 0.95], dtype=torch.float64)
            ),
        )
        .token_ids_M.tolist()
        for temperature in (0.0, 1.0)
    )
    assert likeliest == [0, 0, 0]
    assert drawn == [0, 3, 5]


def test_temperature_and_filters_shape_x0() -> None:
    logits_MV = _logits(_x0(certain=False), 1)

    def probabilities(**fields: float) -> Tensor:
        config = SamplerConfig(algorithm="multinomial", num_steps=1, **fields)  # type: ignore[arg-type]
        return x0_probabilities(logits_MV, config)[0]

    assert probabilities(temperature=0.0).tolist() == [1, 0, 0, 0, 0, 0]
    kept = probabilities(temperature=1.0, top_k=2)
    torch.testing.assert_close(kept[[0, 3]], torch.tensor([5 / 7, 2 / 7]).double())
    assert float(kept.sum()) == pytest.approx(1)
    squared_V = _x0(certain=False) ** 2
    torch.testing.assert_close(
        probabilities(temperature=0.5), squared_V / squared_V.sum(), atol=1e-6, rtol=1e-6
    )


def test_all_that_is_open_is_decided_at_every_step_and_nothing_frozen_is_touched() -> None:
    frozen_BL = torch.tensor([[True, False, False], [False, False, True]])
    rows = RowBatch(
        x_BL=torch.tensor([[0, 1, 3], [4, 5, 1]]),
        frozen_BL=frozen_BL,
        step_B=torch.tensor([0, 4]),
        num_steps_B=torch.tensor([NUM_STEPS, NUM_STEPS]),
        seeds=[0, 0],
        sequence_ids=[0, 1],
    )
    sampler = get_sampler("multinomial")
    config = SamplerConfig(algorithm="multinomial", num_steps=NUM_STEPS)
    decided_BL = sampler.positions_to_decide(rows, config, mask_token_id=MASK)
    assert torch.equal(decided_BL, ~frozen_BL)
    next_BL = sampler.update(
        rows,
        config,
        mask_token_id=MASK,
        decided_BL=decided_BL,
        tokens_BL=torch.full((2, 3), 5),
        confidence_BL=torch.ones(2, 3),
    )
    assert next_BL.tolist() == [[0, 5, 5], [5, 5, 1]]


def test_no_positions_draw_no_tokens() -> None:
    config = SamplerConfig(algorithm="multinomial", num_steps=NUM_STEPS, temperature=1.0)
    samples = Multinomial().draw(
        torch.zeros(0, VOCAB_SIZE), config=config, positions=_positions([], 0)
    )
    assert samples.token_ids_M.shape == samples.confidence_M.shape == (0,)


def test_each_noise_has_its_own_algorithms() -> None:
    assert algorithms_for("uniform") == ("multinomial",)
    assert "multinomial" not in algorithms_for("absorbing")
    assert "p2" in algorithms_for("absorbing")


def test_times_that_round_to_one_are_pure_noise() -> None:
    """float32 lays eps next to 1 on 1 itself: nothing of x0 is known, and nothing is 0 / 0."""
    ones_M = torch.ones(2)
    x0_MV = torch.eye(2, 5, dtype=torch.float64)
    support_MV = torch.ones(2, 5, dtype=torch.bool)
    actual_MV = posterior(
        x0_MV, torch.tensor([3, 4]), t_M=ones_M, s_M=ones_M, support_MV=support_MV
    )
    torch.testing.assert_close(actual_MV, torch.full((2, 5), 0.2, dtype=torch.float64))
