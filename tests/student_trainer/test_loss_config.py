import math
from typing import get_args

import pytest
import torch

from student_trainer.divergences import get_divergence
from student_trainer.loss_config import (
    DivergenceName,
    LossConfig,
    Normalizer,
    Weighting,
    normalizer_count,
    position_weights,
)


def test_position_weights_follow_the_named_definitions():
    t_M, row_length_M = torch.tensor([0.5, 0.25]), torch.tensor([10, 20])
    expected: dict[tuple[Weighting, Normalizer], list[float]] = {
        ("none", "masked_tokens"): [1.0, 1.0],
        ("inv_t", "all_tokens"): [2.0, 4.0],
        ("path", "masked_tokens"): [2.0, 4.0],
        ("inv_t", "sequence"): [0.2, 0.2],
    }
    for (weighting, normalizer), weights in expected.items():
        config = LossConfig(weighting=weighting, normalizer=normalizer)
        weights_M = position_weights(t_M, row_length_M, config)
        torch.testing.assert_close(weights_M, torch.tensor(weights))


def test_normalizer_count_picks_the_configured_count():
    counts: dict[Normalizer, int] = {"masked_tokens": 3, "all_tokens": 7, "sequence": 2}
    for normalizer, count in counts.items():
        config = LossConfig(normalizer=normalizer)
        assert normalizer_count(config, num_masked=3, num_tokens=7, num_sequences=2) == count


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("alpha", -0.1, r"\[0, 1\]"),
        ("alpha", 1.5, r"\[0, 1\]"),
        ("alpha", math.nan, r"\[0, 1\]"),
        ("temperature", 0.0, "positive"),
        ("temperature", -1.0, "positive"),
        ("temperature", math.inf, "finite"),
        ("jsd_beta", 1.0, r"\(0, 1\)"),
        ("max_chunk_elements", 0, "at least 1"),
        ("divergence", "kl", "forward_kl, reverse_kl, jsd"),
        ("weighting", "linear", "none, inv_t, path"),
        ("normalizer", "batch", "masked_tokens, all_tokens, sequence"),
    ],
)
def test_a_bad_setting_is_refused_by_name_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=rf"{field} .*{allowed}.*got {value!r}"):
        LossConfig(**{field: value})


def test_every_divergence_of_the_config_exists():
    for name in get_args(DivergenceName):
        assert callable(get_divergence(name, jsd_beta=0.5))
    with pytest.raises(ValueError, match="unknown divergence 'tvd'; known: forward_kl, jsd"):
        get_divergence("tvd", jsd_beta=0.5)
