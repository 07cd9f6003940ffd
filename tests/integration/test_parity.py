"""The distillation loss over the wire beside an in-process teacher in float64 on full logits."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from student_trainer import config_file, train
from student_trainer.config import Config
from student_trainer.losses import LossConfig
from student_trainer.metrics import read_metrics
from student_trainer.parallel import Parallel
from tests import parity, tiny_models
from tests.parity import DIVERGENCES, TEMPERATURES, target_spec
from tests.servers import serve

TOLERANCE = 1e-5
"""Relative, of float32: 2e-6 were measured for the gradient of the smallest bias."""
KEPT_IDS = (1, 2, 8, 32, 128)
F16_NATS = 2**-8
"""Half of float16's spacing between 8 and 16, where log-probabilities of rare ids lie."""


@dataclass
class Served:
    """A pair whose teacher is served, and its naive losses."""

    pair: parity.Pair
    address: str
    _references: dict[LossConfig, parity.LossAndGradient] = field(default_factory=dict)

    def reference(self, config: LossConfig) -> parity.LossAndGradient:
        """The naive loss of the noised batch, computed once."""
        if config not in self._references:
            batch = parity.noised_batch(self.pair, None, target_spec("hidden"))
            self._references[config] = parity.naive(self.pair, batch, config)
        return self._references[config]

    def loss(self, config: LossConfig, encoding: str, **how: object) -> parity.LossAndGradient:
        """The loss of the same batch with targets from the server."""
        spec = target_spec(encoding, temperature=config.temperature, **how)  # type: ignore[arg-type]
        batch = parity.noised_batch(self.pair, self.address, spec)
        return parity.measured(self.pair, batch, config)


# What is about the encoding or about copies, and not about two models that differ.
one_pair = pytest.mark.parametrize("served", ["shifted_tied"], indirect=True)
two_pairs = pytest.mark.parametrize("served", ["shifted_tied", "aligned_untied"], indirect=True)


@pytest.fixture(scope="module", params=sorted(parity.PAIRS))
def served(request, tiny_tokenizer) -> Iterator[Served]:
    pair = parity.new_pair(parity.PAIRS[request.param], tiny_tokenizer)
    with serve(pair.teacher) as server:
        yield Served(pair, server.address)


@pytest.mark.parametrize("encoding", ["hidden", "logits", "top_k"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_and_gradients_over_the_wire_equal_the_naive_ones(
    served, temperature, divergence, encoding
):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    # TOP_K is asked for more ids than there are, so it is exact as well.
    errors = parity.relative_errors(served.loss(config, encoding), served.reference(config))
    assert errors.loss < TOLERANCE
    assert errors.gradient < TOLERANCE


@pytest.mark.parametrize("encoding", ["hidden", "logits", "top_k"])
def test_the_mixed_loss_equals_the_naive_one(served, encoding):
    config = LossConfig(alpha=0.3, temperature=2.0)
    errors = parity.relative_errors(served.loss(config, encoding), served.reference(config))
    assert errors.loss < TOLERANCE
    assert errors.gradient < TOLERANCE


@one_pair
@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_few_kept_ids_and_the_tail_are_the_naive_buckets(served, temperature, divergence, top_k):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    batch = parity.noised_batch(served.pair, None, target_spec("hidden"))
    few = served.loss(config, "top_k", top_k=top_k)
    expected = parity.naive(served.pair, batch, config, top_k=top_k)
    # One id tells little, so that its loss is a small difference of terms as large as the whole's.
    assert abs(few.loss - expected.loss) < TOLERANCE * served.reference(config).loss
    assert parity.relative_errors(few, expected).gradient < TOLERANCE


@one_pair
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_top_k_rises_to_the_dense_divergence_as_more_ids_are_kept(served, temperature, divergence):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    dense = served.reference(config).loss
    losses = [served.loss(config, "top_k", top_k=top_k).loss for top_k in KEPT_IDS]
    assert losses[0] >= 0
    # A coarser look at two distributions never tells them better apart.
    assert losses == sorted(losses)
    assert losses[-1] < dense
    support = served.pair.teacher.info.vocab_size - 1
    whole = served.loss(config, "top_k", top_k=support)
    assert parity.relative_errors(whole, served.reference(config)).loss < TOLERANCE
    assert losses[-1] < whole.loss


@one_pair
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_top_k_in_float16_is_never_negative_and_close_to_float32(served, temperature, divergence):
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    dense = served.reference(config).loss
    for top_k in (1, 32, 4096):
        half = served.loss(config, "top_k", top_k=top_k, dtype="f16").loss
        full = served.loss(config, "top_k", top_k=top_k).loss
        assert half >= 0
        assert half == pytest.approx(full, rel=F16_NATS)
        assert half < dense * (1 + F16_NATS)


@two_pairs
@pytest.mark.parametrize("encoding", ["hidden", "logits", "top_k"])
def test_states_of_the_teachers_trajectories_have_the_naive_loss(served, encoding):
    config = LossConfig(alpha=0.5, temperature=2.0)
    spec = target_spec(encoding, temperature=2.0)
    batch, *_ = parity.trajectory_batches(served.pair, served.address, spec)
    expected = parity.naive(served.pair, batch, config, prompt_fraction=parity.PROMPT_FRACTION)
    errors = parity.relative_errors(parity.measured(served.pair, batch, config), expected)
    assert errors.loss < TOLERANCE
    assert errors.gradient < TOLERANCE


@two_pairs
@pytest.mark.parametrize(
    ("encoding", "top_k"), [("hidden", 0), ("logits", 0), ("top_k", 4096), ("top_k", 8)]
)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(
    served, temperature, divergence, encoding, top_k
):
    copied = Served(parity.copied_pair(served.pair), served.address)
    data = copied.loss(LossConfig(alpha=0.0), "hidden")
    config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
    zero = copied.loss(config, encoding, top_k=top_k)
    # Beside what the same batch has to teach by its data; float32 leaves 1e-7 of it.
    assert abs(zero.loss) < TOLERANCE * data.loss
    assert parity.gradient_norm(zero.gradient) < TOLERANCE * parity.gradient_norm(data.gradient)


def test_alpha_zero_is_the_naive_cross_entropy_with_and_without_targets(served):
    config = LossConfig(alpha=0.0)
    without = parity.measured(
        served.pair, parity.noised_batch(served.pair, None, target_spec("hidden")), config
    )
    errors = parity.relative_errors(without, served.reference(config))
    assert errors.loss < TOLERANCE
    assert errors.gradient < TOLERANCE
    with_targets = served.loss(config, "hidden")
    assert with_targets.loss == without.loss
    for name, gradient in without.gradient.items():
        assert torch.equal(with_targets.gradient[name], gradient)


@contextlib.contextmanager
def deaf_address() -> Iterator[str]:
    """An address that stays ours and refuses every connection."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_run_with_alpha_zero_is_plain_training_and_asks_no_server(tmp_path, tiny_tokenizer):
    config_path = tmp_path / "student"
    tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer)).save_pretrained(config_path)
    tiny_tokenizer.save_pretrained(config_path)
    text = tmp_path / "text.txt"
    text.write_text("".join(tiny_models.PYTHON_SOURCES), encoding="utf-8")

    def run(name: str, *distill: str) -> Path:
        arguments = [
            f"--model.config_path={config_path}",
            f"--data.train_path={text}",
            "--data.max_seq_len=32",
            f"--train.output_dir={tmp_path / name}",
            "--train.micro_batch_size=2",
            "--train.max_steps=3",
            *distill,
        ]
        config: Config = config_file.load_config(arguments)
        train.run(config, Parallel(device=torch.device("cpu")))
        return tmp_path / name

    plain = run("plain", "--distill.distillation_alpha=0")
    with deaf_address() as address:
        deaf = run("deaf", "--distill.distillation_alpha=0", f"--distill.teacher_address={address}")
    weights = [load_file(folder / "hf_ckpt" / "model.safetensors") for folder in (plain, deaf)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = read_metrics(deaf / "metrics.jsonl")
    assert [step["kd"] for step in metrics] == [0.0] * 3
    assert [step["loss"] for step in metrics] == [step["ce"] for step in metrics]
    assert [step["num_target_bytes"] for step in metrics] == [0] * 3
