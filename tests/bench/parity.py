"""How exactly the remote loss and its gradient equal those of a float64 in-process teacher."""

from collections.abc import Iterator
from typing import TypedDict

import torch
from matplotlib.figure import Figure

from student_trainer import wire
from student_trainer.losses import LossConfig
from tests import parity, tiny_models
from tests.servers import serve

ENCODINGS: tuple[wire.Encoding, ...] = ("hidden", "logits", "top_k")
TOLERANCE = 1e-5
QUICK_PAIRS = ("shifted_tied",)


class EncodingErrors(TypedDict):
    """The worst over divergences, temperatures and pairs of models; TOP_K keeps every id."""

    loss_rel_err: float
    grad_rel_err: float


Result = dict[str, EncodingErrors]


def run(*, quick: bool) -> Result:
    """Measures every encoding."""
    torch.set_num_threads(1)  # threads cost more than they give on tiny tensors
    errors: dict[str, list[parity.RelativeErrors]] = {encoding: [] for encoding in ENCODINGS}
    tokenizer = tiny_models.train_tokenizer()
    for name in QUICK_PAIRS if quick else parity.PAIRS:
        pair = parity.new_pair(parity.PAIRS[name], tokenizer)
        with serve(pair.teacher) as server:
            for encoding, found in _errors(pair, server.address):
                errors[encoding].append(found)
    return {
        encoding: {
            "loss_rel_err": max(error.loss for error in found),
            "grad_rel_err": max(error.gradient for error in found),
        }
        for encoding, found in errors.items()
    }


def _errors(pair: parity.Pair, address: str) -> Iterator[tuple[str, parity.RelativeErrors]]:
    for temperature in parity.TEMPERATURES:
        batches = {
            encoding: parity.noised_batch(
                pair, address, parity.target_spec(encoding, temperature=temperature)
            )
            for encoding in ENCODINGS
        }
        for divergence in parity.DIVERGENCES:
            config = LossConfig(alpha=1.0, temperature=temperature, divergence=divergence)
            reference = parity.naive(pair, batches["hidden"], config)
            for encoding, batch in batches.items():
                actual = parity.measured(pair, batch, config)
                yield encoding, parity.relative_errors(actual, reference)


def table(result: Result) -> str:
    """The result to read."""
    lines = [
        "parity: relative error against float64 on full logits, the worst over divergences,",
        f"temperatures and pairs of models (aim < {TOLERANCE:g})",
        "",
        f"{'encoding':10} {'loss':>10} {'gradient':>10}",
    ]
    for encoding, errors in result.items():
        loss, gradient = errors["loss_rel_err"], errors["grad_rel_err"]
        lines.append(f"{encoding:10} {loss:>10.1e} {gradient:>10.1e}")
    return "\n".join(lines)


def figure(result: Result) -> Figure:
    """The result to look at."""
    drawing = Figure(figsize=(6, 3), layout="constrained")
    axes = drawing.subplots()
    places = range(len(result))
    for offset, key, label in ((-0.2, "loss_rel_err", "loss"), (0.2, "grad_rel_err", "gradient")):
        heights = [errors[key] for errors in result.values()]  # type: ignore[literal-required]
        axes.bar([place + offset for place in places], heights, width=0.38, label=label)
    axes.axhline(TOLERANCE, color="black", linestyle="--", linewidth=1, label="aim")
    axes.set_yscale("log")
    axes.set_xticks(places, list(result))
    axes.set_ylabel("relative error")
    axes.set_title("Remote loss against float64 in process")
    axes.legend()
    return drawing
