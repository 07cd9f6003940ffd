from typing import Any

import pytest

from masked_diffusion.samplers import ALGORITHMS, SamplerConfig
from tests.sampler_choices import choices


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
        ("block_length", -1),
        ("block_length", 4),
        ("guidance_scale", -0.5),
        ("guidance_scale", float("inf")),
        ("guidance_scale", float("nan")),
        ("threshold", 0.9),
        ("threshold", float("nan")),
        ("entropy_bound", 0.1),
        ("entropy_bound", -0.1),
    ],
)
def test_a_bad_field_is_named_with_its_value(field: str, value: object) -> None:
    fields: dict[str, Any] = {"algorithm": "p2", "num_steps": 4, field: value}
    with pytest.raises(ValueError, match=f"^{field} must .*got '?{value}"):
        SamplerConfig(**fields)


def test_equal_configs_are_one_key() -> None:
    assert len({SamplerConfig(algorithm="p2", num_steps=4) for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("algorithm", "field", "value"),
    [
        ("low_confidence_dynamic", "threshold", 0.0),
        ("low_confidence_dynamic", "threshold", 1.5),
        ("low_confidence_dynamic", "threshold", float("nan")),
        ("low_confidence_dynamic", "entropy_bound", 0.5),
        ("entropy_bounded", "entropy_bound", -0.5),
        ("entropy_bounded", "entropy_bound", float("inf")),
        ("entropy_bounded", "threshold", 0.5),
        ("low_confidence", "block_length", -1),
        ("ancestral", "suppress_mask_token", False),
        ("ancestral", "block_length", 3),
    ],
)
def test_a_choice_that_the_algorithm_cannot_honour_is_refused(
    algorithm: str, field: str, value: object
) -> None:
    fields: dict[str, Any] = {"algorithm": algorithm, "num_steps": 4}
    fields |= choices(algorithm) | {field: value}
    with pytest.raises(ValueError, match=f"^{field} must .*got {value}"):
        SamplerConfig(**fields)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_guidance_which_costs_a_second_forward(algorithm: str) -> None:
    fields: dict[str, Any] = {"algorithm": algorithm, "num_steps": 4, **choices(algorithm)}
    assert SamplerConfig(**fields).forwards_per_step == 1
    assert SamplerConfig(**fields, guidance_scale=0.5).forwards_per_step == 2
