"""The compiled body computes what the plain one does, in few graphs."""

from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from teacher_server.config import EngineConfig
from teacher_server.engine.compiled_body import CompiledBody, bucket_of, obstacle
from teacher_server.engine.model_runner import ModelRunner
from tests import tiny_models


def _one_layer(denoiser: Denoiser) -> Denoiser:
    """As little to compile as possible: it takes its time for each layer."""
    config = tiny_models.qwen2_config(vocab_size=denoiser.info.vocab_size, num_layers=1)
    return checkpoints.new_denoiser(config, denoiser.tokenizer, seed=0).eval()


def test_buckets_are_powers_of_two_of_rows_and_lengths_of_fixed_shapes() -> None:
    assert bucket_of(1, 7, max_length=512) == (1, 32)
    assert bucket_of(3, 97, max_length=512) == (4, 128)
    assert bucket_of(4, 300, max_length=512) == (4, 384)
    assert bucket_of(5, 390, max_length=400) == (8, 400)


def test_without_a_compiler_it_is_said_what_to_do(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(ValueError, match="there is no C\\+\\+ compiler .*; install one, or name"):
        ModelRunner(tiny_denoiser, max_head_elements=1000, compiles=True)


def test_it_is_refused_with_fixed_shapes() -> None:
    with pytest.raises(ValueError, match="compile must be false with deterministic, got true"):
        EngineConfig(compile=True, deterministic=True)


# Of torch itself, where it loads its compiler.
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_computes_what_the_plain_body_does_whatever_the_sizes(
    tiny_denoiser: Denoiser,
) -> None:
    denoiser = _one_layer(tiny_denoiser)
    if obstacle(denoiser) is not None:
        pytest.skip(str(obstacle(denoiser)))
    runner = ModelRunner(denoiser, max_head_elements=1000, compiles=True)
    plain = ModelRunner(denoiser, max_head_elements=1000, pad_rows=True)
    assert not runner.packs_rows
    generator = torch.Generator().manual_seed(0)
    num_graphs = _num_graphs()
    for lengths in ([9], [17, 17], [3, 40, 12], [64, 5, 5, 30]):
        rows = [
            torch.randint(denoiser.info.vocab_size, (length,), generator=generator)
            for length in lengths
        ]
        times = [0.5] * len(rows)
        compiled, expected = (r.hidden_states(rows, times=times) for r in (runner, plain))
        for one, other in zip(compiled, expected, strict=True):
            # float32 rounding of values up to about 4, sums in another order.
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    bucketed = CompiledBody(denoiser, pads_to_buckets=True)
    x_BL = torch.randint(denoiser.info.vocab_size, (3, 40), generator=generator)
    with torch.inference_mode():
        hidden_BLD = bucketed(x_BL, None, times_B=torch.ones(3))
        torch.testing.assert_close(hidden_BLD, denoiser.hidden_states(x_BL), atol=1e-5, rtol=1e-5)
    # Nothing was compiled for a size of its own, but for a single row with a mask.
    assert _num_graphs() <= num_graphs + 1


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
