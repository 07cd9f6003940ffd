"""How samplers are named on the command line."""

import pytest

from masked_diffusion.samplers import SamplerConfig
from student_trainer.evaluation.sampler_spec import parse_sampler


def test_options_are_typed_and_the_temperature_is_the_common_one_where_none_is_named():
    spec = parse_sampler("low_confidence:block_length=32:top_p=0.9:suppress_mask_token=false")
    assert spec.config(8, temperature=0.7) == SamplerConfig(
        algorithm="low_confidence", num_steps=8, temperature=0.7, top_p=0.9, block_length=32,
        suppress_mask_token=False,
    )  # fmt: skip
    assert parse_sampler("p2:temperature=0.5").config(4, temperature=1.0).temperature == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropi", "unknown sampler 'entropi'; did you mean 'entropy'"),
        ("entropy:top=3", "did you mean top_[kp]="),
        ("entropy:top_p", "unknown option 'top_p'"),
    ],
)
def test_unknown_names_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_sampler(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy:block_length=4", "block_length must be 0"),
        ("entropy:top_k=many", "top_k: .* valid integer"),
    ],
)
def test_values_that_are_not_allowed_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_sampler(text).config(8, temperature=1.0)
