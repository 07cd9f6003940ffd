"""Entropy-bounded unmasking: forwards that it saves, and how far it leaves the exact chain.

The exact chain unmasks one position a forward. A step that unmasks several draws all of them from
one state; the chain that unmasks the same positions one by one, in the same order and with the same
tokens, would have drawn each from a state that has those before it. Between the two distributions
stands KL(drawn from, exact), whose sum over a trajectory is on average the divergence of the
sampler's joint distribution from the chain's.
"""

import argparse
import inspect
import optparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from examples.antibody import convert
from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from tests import trained_models
from tests.bench.exact_chain import Trace, trace

BOUNDS = (0.05, 0.2, 1.0, 4.0, 16.0)
_MASKED_FRACTION = 0.6
_LENGTH = trained_models.LENGTH
# The human germline gene IGHV3-23, and a usual end: heads of antibodies that AntiBERTy has seen.
_GERMLINE = (
    "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"
    "DYWGQGTLVTVSS"
)


def run(*, quick: bool) -> dict[str, Any]:
    """A small model of Python source trained here; without `quick` AntiBERTy too, from PyPI."""
    denoiser = trained_models.train_denoiser("aligned")
    models = {"python source": measure(denoiser, source_states(denoiser, num_rows=12))}
    if not quick:
        antibody = _antibody_denoiser()
        models["AntiBERTy"] = measure(antibody, _antibody_states(antibody, num_rows=2))
    return {"models": models}


def measure(
    denoiser: Denoiser, x_BL: torch.Tensor, *, bounds: Sequence[float] = BOUNDS
) -> dict[str, Any]:
    """Trajectories from the states at temperature 1, with each bound and with as many fixed steps.

    Args:
        x_BL: [B, L] int64, no padding.
    """
    num_masked = int((x_BL == denoiser.info.mask_token_id).sum(-1).max())
    bounded, fixed = [], []
    for bound in bounds:
        config = SamplerConfig(
            algorithm="entropy_bounded",
            num_steps=num_masked,
            temperature=1.0,
            entropy_bound=bound,
        )
        bounded.append({"bound": bound, **_figures(trace(denoiser, x_BL, config), len(x_BL))})
        num_steps = max(1, round(bounded[-1]["forwards"] / len(x_BL)))
        config = SamplerConfig(algorithm="low_confidence", num_steps=num_steps, temperature=1.0)
        fixed.append(_figures(trace(denoiser, x_BL, config), len(x_BL)))
    return {
        "num_sequences": len(x_BL),
        "num_positions": bounded[0]["positions"],
        "entropy_bounded": bounded,
        "fixed_steps": fixed,
    }


def _figures(traced: Trace, num_rows: int) -> dict[str, float]:
    return {
        "positions": traced.num_positions,
        "forwards": traced.num_forwards,
        "forwards_ratio": traced.num_forwards / traced.num_positions,
        "kl_per_position": sum(traced.kl) / traced.num_positions,
        "kl_per_sequence": sum(traced.kl) / num_rows,
        "max_kl": max(traced.kl),
    }


def source_states(denoiser: Denoiser, *, num_rows: int) -> torch.Tensor:
    """[B, L] windows of a module that the model was not trained on, partly masked."""
    assert denoiser.tokenizer is not None and optparse is not argparse
    ids_N = torch.tensor(denoiser.tokenizer(inspect.getsource(optparse))["input_ids"])
    generator = torch.Generator().manual_seed(1)
    starts_B1 = torch.randint(len(ids_N) - _LENGTH, (num_rows, 1), generator=generator)
    return _masked(denoiser, ids_N[starts_B1 + torch.arange(_LENGTH)], generator)


def _antibody_denoiser() -> Denoiser:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        convert.convert_wheel(convert.download_wheel(Path(scratch) / "wheel"), folder)
        return checkpoints.load_denoiser(str(folder)).eval().requires_grad_(False)


def _antibody_states(denoiser: Denoiser, *, num_rows: int) -> torch.Tensor:
    assert denoiser.tokenizer is not None
    ids_L = torch.tensor(denoiser.tokenizer(_GERMLINE)["input_ids"])
    x_BL = _masked(denoiser, ids_L.repeat(num_rows, 1), torch.Generator().manual_seed(1))
    x_BL[:, -1] = ids_L[-1]
    return x_BL


def _masked(denoiser: Denoiser, x0_BL: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    masked_BL = torch.rand(x0_BL.shape, generator=generator) < _MASKED_FRACTION
    masked_BL[:, 0] = False
    return x0_BL.masked_fill(masked_BL, denoiser.info.mask_token_id)


def table(result: dict[str, Any]) -> str:
    """The result to read."""
    lines = []
    for name, model in result["models"].items():
        lines += [
            f"approximate, {name}: {model['num_sequences']} sequences, {model['num_positions']} "
            "masked positions; forwards over those of one position a step; KL in nats",
            f"{'bound':>8} {'forwards':>9} {'KL/position':>12} {'KL/sequence':>12} {'largest':>8}"
            f"   {'fixed steps: forwards':>21} {'KL/position':>12}",
        ]
        for row, fixed in zip(model["entropy_bounded"], model["fixed_steps"], strict=True):
            lines.append(
                f"{row['bound']:>8g} {row['forwards_ratio']:>9.3f} {row['kl_per_position']:>12.2e} "
                f"{row['kl_per_sequence']:>12.2e} {row['max_kl']:>8.2g}   "
                f"{fixed['forwards_ratio']:>21.3f} {fixed['kl_per_position']:>12.2e}"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def figure(result: dict[str, Any]) -> Figure:
    """The result to look at: error against cost, of both ways."""
    models = result["models"]
    drawing = Figure(figsize=(4.5 * len(models), 3.4), layout="constrained")
    for axes, (name, model) in zip(
        drawing.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True
    ):
        for key, label, color in (
            ("entropy_bounded", "entropy-bounded", "#0072b2"),
            ("fixed_steps", "fixed number a step", "#d55e00"),
        ):
            axes.plot(
                [row["forwards_ratio"] for row in model[key]],
                [row["kl_per_position"] for row in model[key]],
                marker="o",
                label=label,
                color=color,
            )
        axes.set_title(name)
        axes.set_xlabel("forwards a position")
        axes.set_ylabel("KL to the exact chain, nats a position")
        axes.set_ylim(bottom=0)
        axes.legend()
    return drawing
