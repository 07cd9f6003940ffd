from typing import Any

import pytest
import torch

from masked_diffusion.randomness import keyed_uniforms
from masked_diffusion.samplers import ALGORITHMS, SAMPLERS, RowBatch, SamplerConfig, get_sampler


def test_every_algorithm_has_a_sampler() -> None:
    assert set(SAMPLERS) == set(ALGORITHMS)


def test_an_unknown_algorithm_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown algorithm 'magic'; known: entropy, maskgit_plus"):
        get_sampler("magic")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algorithm", "magic"),
        ("num_steps", 0),
        ("temperature", -0.5),
        ("temperature", 1e-9),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("alg_temp", -1.0),
        ("alg_temp", float("nan")),
        ("eps", 0.0),
        ("eps", 1.0),
    ],
)
def test_a_bad_field_is_named_with_its_value(field: str, value: object) -> None:
    fields: dict[str, Any] = {"algorithm": "p2", "num_steps": 4, field: value}
    with pytest.raises(ValueError, match=f"^{field} must .*got '?{value}"):
        SamplerConfig(**fields)


def test_equal_configs_are_one_key() -> None:
    assert len({SamplerConfig(algorithm="p2", num_steps=4) for _ in range(2)}) == 1


def test_rows_draw_at_their_own_step() -> None:
    rows = RowBatch(
        x_BL=torch.zeros(2, 5, dtype=torch.int64),
        frozen_BL=torch.zeros(2, 5, dtype=torch.bool),
        step_B=torch.tensor([0, 3]),
        num_steps_B=torch.tensor([4, 8]),
        seeds=[1, 2],
        sequence_ids=[10, 20],
    )
    alone = keyed_uniforms(seed=2, sequence_id=20, step=3, length=5, stream="order")
    assert rows.uniforms("order")[1].tolist() == alone.tolist()


def test_a_mask_in_the_prompt_is_not_to_be_unmasked() -> None:
    rows = RowBatch(
        x_BL=torch.tensor([[9, 9, 1]]),
        frozen_BL=torch.tensor([[True, False, True]]),
        step_B=torch.tensor([0]),
        num_steps_B=torch.tensor([1]),
        seeds=[0],
        sequence_ids=[0],
    )
    assert rows.masked(mask_token_id=9).tolist() == [[False, True, False]]
