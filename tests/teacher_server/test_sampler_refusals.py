"""Choices of a sampler that are refused: each names the field, the value and what is allowed."""

import dataclasses
import math
from typing import Any

import pytest

from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.samplers import algorithms_for
from protos import errors
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.config import LimitsConfig
from teacher_server.request_specs import SpecReader
from tests.sampler_choices import choices

# Algorithm, field, its value, and what the refusal says after the field's name.
REFUSED: list[tuple[str, str, object, str]] = [
    ("low_confidence", "block_length", -1, "must be at least 0, got -1"),
    (
        "entropy",
        "block_length",
        4,
        "must be 0 with algorithm entropy (only low_confidence, random, low_confidence_dynamic, "
        "entropy_bounded would use it), got 4",
    ),
    ("origin", "guidance_scale", -0.5, "must be in [0, 100], got -0.5"),
    ("origin", "guidance_scale", math.nan, "must be in [0, 100], got nan"),
    ("origin", "guidance_scale", math.inf, "must be in [0, 100], got inf"),
    (
        "low_confidence_dynamic",
        "threshold",
        0.0,
        "must lie in (0, 1] with algorithm low_confidence_dynamic, got 0.0",
    ),
    (
        "low_confidence_dynamic",
        "threshold",
        1.5,
        "must lie in (0, 1] with algorithm low_confidence_dynamic, got 1.5",
    ),
    (
        "low_confidence_dynamic",
        "threshold",
        math.nan,
        "must lie in (0, 1] with algorithm low_confidence_dynamic, got nan",
    ),
    (
        "p2",
        "threshold",
        0.9,
        "must be 0 with algorithm p2 (only low_confidence_dynamic would use it), got 0.9",
    ),
    ("entropy_bounded", "entropy_bound", -0.25, "must be finite and at least 0, got -0.25"),
    ("entropy_bounded", "entropy_bound", math.nan, "must be finite and at least 0, got nan"),
    ("entropy_bounded", "entropy_bound", math.inf, "must be finite and at least 0, got inf"),
    (
        "entropy",
        "entropy_bound",
        0.3,
        "must be 0 with algorithm entropy (only entropy_bounded would use it), got 0.3",
    ),
    (
        "ancestral",
        "sample_mask_token",
        True,
        "must be false with ALGORITHM_ANCESTRAL, whose posterior knows no mask in a clean "
        "sequence, got true",
    ),
]


def _reader(info: DenoiserInfo) -> SpecReader:
    return SpecReader(info, LimitsConfig(), model_dtype="f32")


def _spec(algorithm: str, **changes: object) -> pb.SamplerSpec:
    fields: dict[str, Any] = {"num_steps": 4, **choices(algorithm)} | changes
    return pb.SamplerSpec(algorithm=names.value_of(names.ALGORITHMS, algorithm), **fields)


@pytest.mark.parametrize(("algorithm", "field", "value", "text"), REFUSED)
def test_a_choice_is_refused_by_field_value_and_mend(
    algorithm: str, field: str, value: object, text: str, tiny_denoiser: Denoiser
) -> None:
    with pytest.raises(errors.InvalidRequestError) as told:
        _reader(tiny_denoiser.info).sampler(_spec(algorithm, **{field: value}))
    assert told.value.field == f"sampler.{field}"
    assert str(told.value) == f"sampler.{field} {text}"


def test_a_block_causal_teacher_has_its_own_blocks(tiny_denoiser: Denoiser) -> None:
    info = dataclasses.replace(tiny_denoiser.info, attention="block_causal", block_length=8)
    with pytest.raises(errors.InvalidRequestError) as told:
        _reader(info).sampler(_spec("low_confidence", block_length=4))
    assert told.value.field == "sampler.block_length"
    assert str(told.value) == (
        "sampler.block_length must be 0 with a block-causal denoiser, whose blocks of 8 positions "
        "are the only choice, got 4"
    )
    assert _reader(info).sampler(_spec("low_confidence", block_length=0)).block_length == 0


def test_a_teacher_of_uniform_noise_cannot_be_guided(tiny_denoiser: Denoiser) -> None:
    info = dataclasses.replace(tiny_denoiser.info, noise="uniform")
    with pytest.raises(errors.InvalidRequestError) as told:
        _reader(info).sampler(_spec("multinomial", guidance_scale=1.5))
    assert told.value.field == "sampler.guidance_scale"
    assert "must be 0 with a denoiser of uniform noise" in str(told.value)
    assert str(told.value).endswith("got 1.5")


def test_a_teacher_of_uniform_noise_never_draws_the_mask_id(tiny_denoiser: Denoiser) -> None:
    info = dataclasses.replace(tiny_denoiser.info, noise="uniform")
    with pytest.raises(errors.InvalidRequestError) as told:
        _reader(info).sampler(_spec("multinomial", sample_mask_token=True))
    assert told.value.field == "sampler.sample_mask_token"
    assert str(told.value) == (
        "sampler.sample_mask_token must be false with a teacher of uniform noise, whose sequences "
        "never hold the mask id, got true"
    )


@pytest.mark.parametrize("algorithm", algorithms_for("absorbing"))
def test_what_is_asked_for_is_what_is_sampled(algorithm: str, tiny_denoiser: Denoiser) -> None:
    """Decimals come as they were written, not as float32 has them; absent ones are defaults."""
    reader = _reader(tiny_denoiser.info)
    config = reader.sampler(_spec(algorithm, guidance_scale=0.7, eps=0.01, top_p=0.9))
    assert (config.algorithm, config.guidance_scale) == (algorithm, 0.7)
    assert (config.eps, config.top_p, config.top_k) == (0.01, 0.9, None)
    for name, value in choices(algorithm).items():
        assert getattr(config, name) == value
    plain = reader.sampler(_spec(algorithm))
    assert (plain.eps, plain.top_p, plain.guidance_scale) == (1e-3, None, 0.0)
    assert plain.suppress_mask_token
    if algorithm != "ancestral":
        assert not reader.sampler(_spec(algorithm, sample_mask_token=True)).suppress_mask_token
