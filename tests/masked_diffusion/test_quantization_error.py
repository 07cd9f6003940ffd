import dataclasses
import math

import pytest
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.probe_states import make_probe_states, masked_hidden_states
from masked_diffusion.quantization_error import measure_quantization_error


def test_it_is_the_plain_divergence_and_its_spread_over_windows(tiny_denoiser: Denoiser) -> None:
    states = make_probe_states(tiny_denoiser, seed=0)
    exact_MD = masked_hidden_states(tiny_denoiser, states)
    noise_MD = torch.randn(exact_MD.shape, generator=torch.Generator().manual_seed(0))
    moved_MD = exact_MD + 0.1 * noise_MD
    error = measure_quantization_error(tiny_denoiser, exact_MD, moved_MD, states)

    head_VD = tiny_denoiser.head_weight.detach().double()[: tiny_denoiser.info.vocab_size]
    mask_token_id = tiny_denoiser.info.mask_token_id
    by_window: dict[int, list[float]] = {}
    num_same, position = 0, 0
    for window, masked_L in zip(states.windows_B.tolist(), states.masked_BL, strict=True):
        for _ in range(int(masked_L.sum())):
            logits = [head_VD @ hidden[position].double() for hidden in (exact_MD, moved_MD)]
            for row in logits:
                row[mask_token_id] = -math.inf
            p, q = (row.softmax(-1) for row in logits)
            terms = (float(a) * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
            by_window.setdefault(window, []).append(sum(terms))
            num_same += int(p.argmax() == q.argmax())
            position += 1
    values = [value for window in by_window.values() for value in window]
    mean = sum(values) / len(values)
    spread = sum(sum(value - mean for value in window) ** 2 for window in by_window.values())
    spread *= len(by_window) / (len(by_window) - 1)

    assert error.num_positions == len(values) == position
    assert error.num_windows == len(by_window)
    # The product with the head is float32 in one and float64 in the other.
    assert error.kl_nats == pytest.approx(mean, rel=1e-4)
    assert error.kl_standard_error == pytest.approx(math.sqrt(spread) / len(values), rel=1e-3)
    assert error.top1_agreement_fraction == pytest.approx(num_same / len(values))


def test_a_model_does_not_differ_from_itself(tiny_denoiser: Denoiser) -> None:
    states = make_probe_states(tiny_denoiser, seed=0)
    hidden_MD = masked_hidden_states(tiny_denoiser, states)
    error = measure_quantization_error(tiny_denoiser, hidden_MD, hidden_MD, states)
    assert (error.kl_nats, error.top1_agreement_fraction) == (0, 1)


def test_one_window_has_no_standard_error(tiny_denoiser: Denoiser) -> None:
    states = make_probe_states(tiny_denoiser, seed=0)
    hidden_MD = masked_hidden_states(tiny_denoiser, states)
    single = dataclasses.replace(states, windows_B=torch.zeros_like(states.windows_B))
    error = measure_quantization_error(tiny_denoiser, hidden_MD, hidden_MD, single)
    assert math.isnan(error.kl_standard_error)
