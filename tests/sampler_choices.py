"""What each sampler is asked for beside the common choices, so that tests can take any of them."""

from collections.abc import Mapping

_CHOICES: Mapping[str, Mapping[str, float]] = {
    "low_confidence": {"block_length": 5},
    "random": {"block_length": 5},
    # The tiny models of the tests are seldom surer than this, and sometimes are.
    "low_confidence_dynamic": {"block_length": 6, "threshold": 0.125},
    "entropy_bounded": {"block_length": 7, "entropy_bound": 4.0},
}


def choices(algorithm: str) -> dict[str, float]:
    """Fields of SamplerConfig and of both SamplerSpecs that the algorithm alone uses."""
    return dict(_CHOICES.get(algorithm, {}))
