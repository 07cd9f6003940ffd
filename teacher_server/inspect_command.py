"""`teacher-server inspect`: tells what would be served, without reading a weight.

Exit codes: 0 could be served as far as was looked, 1 could not, 2 misused.
"""

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from masked_diffusion.blueprint import read_blueprint
from masked_diffusion.families import Denoiser, SelfTestReport, self_test
from masked_diffusion.memory import loaded_bytes
from masked_diffusion.probe_states import ProbeStates, make_probe_states, masked_hidden_states
from masked_diffusion.quantization_error import QuantizationError, measure_quantization_error
from teacher_server.arguments import add_loading_options, load, parse_checked
from teacher_server.inspection import Inspection, inspect_blueprint
from teacher_server.inspection_text import bytes_text, inspection_text

EXIT_FAILED = 1
PROBE_SEED = 0
NUM_TIMED_RUNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedCost:
    """What one version of the weights takes."""

    num_bytes: int
    load_s: float
    probe_s: float
    """Of running the body over all probe states: the fastest of some runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationComparison:
    """The same checkpoint with and without quantization."""

    quantization: str
    dtype: str
    """Of what is not quantized, on both sides."""
    probe_source: str
    error: QuantizationError
    exact: LoadedCost
    quantized: LoadedCost

    def __str__(self) -> str:
        error, exact, packed = self.error, self.exact, self.quantized
        return (
            f"{self.quantization} against {self.dtype} at {error.num_positions} masked positions "
            f"({error.num_windows} windows of {self.probe_source}): "
            f"KL {error.kl_nats:.2e} +- {error.kl_standard_error:.1e} nats, "
            f"top-1 agreement {error.top1_agreement_fraction:.2%}; "
            f"weights {bytes_text(exact.num_bytes)} -> {bytes_text(packed.num_bytes)}, "
            f"load {exact.load_s:.1f} -> {packed.load_s:.1f} s, "
            f"forward {exact.probe_s:.3f} -> {packed.probe_s:.3f} s"
        )


_Finding = Inspection | SelfTestReport | QuantizationComparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Inspects one checkpoint and prints the result; returns the exit code."""
    options = _parse(arguments)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    result: dict[str, Any] = {"error": None}
    try:
        for name, found in _findings(options):
            values = dataclasses.asdict(found)
            result |= {name: values} if name else values
            if not options.json:
                print(_text(name, found), flush=True)
    except (ValueError, OSError) as error:
        result["error"] = str(error)
        print(f"teacher-server inspect: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(_without_nan(result), indent=2))
    return 0 if result["error"] is None else EXIT_FAILED


def _text(name: str, found: _Finding) -> str:
    return inspection_text(found) if isinstance(found, Inspection) else f"{name}: {found}"


def _findings(options: argparse.Namespace) -> Iterator[tuple[str, _Finding]]:
    """Yields what was asked for, under its name; first the facts, which need none.

    Raises:
        ValueError: the checkpoint could not be served.
    """
    blueprint = read_blueprint(
        options.model,
        trust_remote_code=options.trust_remote_code,
        mask_token_id=options.mask_token_id,
        alignment=options.alignment,
        block_length=options.block_length,
    )
    inspection = inspect_blueprint(blueprint)
    yield "", inspection
    if not inspection.weights.complete:
        raise ValueError(
            f"the weights of {inspection.name} are not all there as safetensors; save or fetch the "
            "checkpoint again"
        )
    if options.self_test:
        yield "self_test", self_test(load(options))
    if options.compare:
        yield "comparison", _compare(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="teacher-server inspect",
        description="Tells what the server understands of a checkpoint, without reading a weight. "
        "Exit codes: 0 could be served as far as was looked, 1 could not, 2 misused.",
    )
    parser.add_argument("model", metavar="PATH_OR_ID", help="checkpoint folder or hub id")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--self-test", action="store_true", help="load the weights and run the self-test too"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="load the weights with and without --quantization and compare their distributions",
    )
    add_loading_options(parser)
    # The self-test is run here, where its report can be shown.
    parser.set_defaults(skip_self_test=True, tensor_parallel=False)
    options = parse_checked(parser, arguments)
    if options.compare and options.quantization is None:
        parser.error("--compare needs --quantization NAME, to compare with the unquantized weights")
    return options


def _without_nan(value: Any) -> Any:
    """What JSON can say: null for a number that is none."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare(options: argparse.Namespace) -> QuantizationComparison:
    """Loads one after the other, so that both never lie in memory together."""
    plain = copy.copy(options)
    plain.quantization = None
    denoiser, load_s = _timed_load(plain)
    states = make_probe_states(denoiser, seed=PROBE_SEED)
    exact_MD, exact = _run(denoiser, states, load_s=load_s)
    dtype = str(denoiser.head_weight.dtype).removeprefix("torch.")
    del denoiser
    denoiser, load_s = _timed_load(options)
    quantized_MD, quantized = _run(denoiser, states, load_s=load_s)
    return QuantizationComparison(
        quantization=options.quantization,
        dtype=dtype,
        probe_source=states.source,
        error=measure_quantization_error(denoiser, exact_MD, quantized_MD, states),
        exact=exact,
        quantized=quantized,
    )


def _timed_load(options: argparse.Namespace) -> tuple[Denoiser, float]:
    started_s = time.monotonic()
    denoiser = load(options)
    return denoiser, time.monotonic() - started_s


def _run(denoiser: Denoiser, states: ProbeStates, *, load_s: float) -> tuple[Tensor, LoadedCost]:
    seconds = []
    for _ in range(NUM_TIMED_RUNS):
        started_s = time.monotonic()
        # On the host, which waits for a GPU to be done.
        hidden_MD = masked_hidden_states(denoiser, states).cpu()
        seconds.append(time.monotonic() - started_s)
    cost = LoadedCost(num_bytes=loaded_bytes(denoiser.model), load_s=load_s, probe_s=min(seconds))
    return hidden_MD.to(denoiser.device), cost
