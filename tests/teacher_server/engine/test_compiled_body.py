"""The compiled body computes what the plain one does, in few graphs."""

from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, padding_mask
from teacher_server.config import EngineConfig
from teacher_server.engine.compiled_body import CompiledBody, bucket_of, obstacle
from teacher_server.engine.model_runner import ModelRunner
from tests import tiny_models

# Of torch itself, where it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")


def _one_layer(denoiser: Denoiser) -> Denoiser:
    """As little to compile as possible: it takes its time for each layer."""
    config = tiny_models.qwen2_config(vocab_size=denoiser.info.vocab_size, num_layers=1)
    return checkpoints.new_denoiser(config, denoiser.tokenizer, seed=0).eval()


def test_buckets_are_powers_of_two_of_rows_and_lengths_of_fixed_shapes() -> None:
    assert bucket_of(1, 7, max_length=512) == (1, 32)
    assert bucket_of(3, 97, max_length=512) == (4, 112)
    assert bucket_of(4, 300, max_length=512) == (4, 320)
    assert bucket_of(5, 390, max_length=400) == (8, 400)


def test_without_a_compiler_it_is_said_what_to_do(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler .*; install one, or name"):
        ModelRunner(tiny_denoiser, max_head_elements=1000, compiles=True)


def test_it_is_refused_with_fixed_shapes() -> None:
    with pytest.raises(ValueError, match="compile must be false with deterministic, got true"):
        EngineConfig(compile=True, deterministic=True)


def test_a_runner_pads_its_rows_and_sends_them_through_it(tiny_denoiser: Denoiser) -> None:
    # Everything but the compiler.
    with torch.compiler.set_stance("force_eager"):
        runner = ModelRunner(tiny_denoiser, max_head_elements=1000, compiles=True)
        assert not runner.packs_rows
        rows = [torch.arange(length) for length in (5, 9, 3)]
        hidden = runner.hidden_states(rows, times=[0.5] * 3)
    plain = ModelRunner(tiny_denoiser, max_head_elements=1000, pad_rows=True)
    for one, other in zip(hidden, plain.hidden_states(rows, times=[0.5] * 3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_few_graphs_compute_what_the_plain_body_does_whatever_the_sizes(
    tiny_denoiser: Denoiser,
) -> None:
    if obstacle(tiny_denoiser) is not None:
        pytest.skip(str(obstacle(tiny_denoiser)))
    denoiser = _one_layer(tiny_denoiser)
    generator = torch.Generator().manual_seed(0)
    num_graphs = _num_graphs()
    for pads_to_buckets in (True, False):
        body = CompiledBody(denoiser, pads_to_buckets=pads_to_buckets)
        for lengths in ([17, 16], [3, 40, 12], [64, 5, 5, 30]):
            x_BL = torch.randint(
                denoiser.info.vocab_size, (len(lengths), max(lengths)), generator=generator
            )
            mask_BL = padding_mask(torch.tensor(lengths), max(lengths))
            with torch.inference_mode():
                hidden_BLD = body(x_BL, mask_BL, times_B=torch.ones(len(lengths)))
                expected_BLD = denoiser.hidden_states(x_BL, mask_BL)
            assert hidden_BLD.shape == expected_BLD.shape
            # float32 rounding of values up to about 4, summed in another order.
            torch.testing.assert_close(
                hidden_BLD[mask_BL], expected_BLD[mask_BL], atol=1e-5, rtol=1e-5
            )
    # One for each way of padding at most, none for a size.
    assert 1 <= _num_graphs() - num_graphs <= 2


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
