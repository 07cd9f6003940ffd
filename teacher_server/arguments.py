"""The command line of `teacher-server`, and the denoiser that it asks for."""

import argparse
import logging
import os
import time
from collections.abc import Sequence

import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.quantization import QUANTIZATIONS
from teacher_server.config import AutotuneConfig, EngineConfig, LimitsConfig, ServerConfig
from teacher_server.engine.device_policy import float32_speedup
from teacher_server.options import add_options

logger = logging.getLogger(__name__)

_SLOW_FORMAT = 1.2
"""Time over that of float32 from which on it is told."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options of serving; ends the process with code 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="teacher-server",
        description="Serves a masked-diffusion teacher over gRPC. `teacher-server inspect --help` "
        "tells how to look at a checkpoint first.",
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH_OR_ID", help="checkpoint folder or hub id"
    )
    add_loading_options(parser)
    parser.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="split the layers over the processes that torchrun started; rank 0 serves",
    )
    parser.add_argument(
        "--skip-self-test",
        action="store_true",
        help="serve even if attention is not bidirectional or padding matters",
    )
    parser.add_argument(
        "--devices",
        type=_device_names,
        default=[],
        metavar="DEVICE,DEVICE",
        help="one engine for each, which share all rows; instead of --device",
    )
    for config_class in (ServerConfig, EngineConfig, AutotuneConfig, LimitsConfig):
        add_options(parser, config_class)
    options = parse_checked(parser, arguments)
    options.given = sorted(given_names(parser, arguments))
    if options.devices and (options.tensor_parallel or options.engine_in_process):
        parser.error(
            "--devices starts an engine process for each; leave it out with --tensor-parallel and "
            "--engine-in-process"
        )
    for other in ("autotune", "autotune_file", "pad_rows"):
        if options.deterministic and getattr(options, other):
            parser.error(
                f"--{other.replace('_', '-')} changes shapes that --deterministic fixes, so that "
                "replicas would differ; leave one of them out"
            )
    if options.devices and (options.autotune or options.autotune_file):
        parser.error(
            "--autotune measures one engine, and several would disturb each other; tune with "
            "--device first and give what it chose"
        )
    if options.devices and "device" in options.given:
        parser.error("--devices is instead of --device; leave one of them out")
    if options.tensor_parallel and (options.autotune or options.autotune_file):
        parser.error("--autotune measures one process; leave it out with --tensor-parallel")
    if options.tensor_parallel and options.compile:
        parser.error("--compile compiles one process; leave it out with --tensor-parallel")
    if options.tensor_parallel and options.device != "auto":
        parser.error(
            f"--device must be auto with --tensor-parallel, got {options.device}: each rank takes "
            "the GPU of its own number, and the CPU where there is no GPU"
        )
    return options


def _device_names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between, got {text!r}")
    return names


def given_names(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> frozenset[str]:
    """Names of the options that stand on the command line, whatever their value."""
    # Defaults are only set where a namespace has nothing yet.
    absent = object()
    names = [action.dest for action in parser._actions]
    parsed = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, absent)))
    return frozenset(name for name, value in vars(parsed).items() if value is not absent)


def parse_checked(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parses, and checks what argparse cannot."""
    options = parser.parse_args(arguments)
    if options.num_threads < 0:
        parser.error(f"--num-threads must not be negative, got {options.num_threads}")
    return options


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides how a checkpoint is loaded, but for its name."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "float16", "bfloat16"],
        help="number format of the weights; auto keeps the checkpoint's",
    )
    parser.add_argument(
        "--mask-token-id", type=int, default=None, help="only where the checkpoint names none"
    )
    parser.add_argument(
        "--alignment",
        default=None,
        choices=["aligned", "shifted"],
        help="raw row p is about token p, or row p - 1 is; only where the checkpoint's own is "
        "wrong or unknown",
    )
    parser.add_argument(
        "--block-length",
        type=int,
        default=None,
        help="positions of a block, where a block-diffusion checkpoint names none",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH_OR_ID",
        help="peft adapter to merge; may be repeated, merged in order",
    )
    parser.add_argument(
        "--quantization",
        default=None,
        choices=sorted(QUANTIZATIONS),
        help="weights of the body in fewer bits; the head and embeddings stay as they are",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that the checkpoint brings"
    )
    parser.add_argument(
        "--num-threads", type=int, default=0, help="CPU threads of the forward; 0 = torch's default"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # A device that torch knows of but cannot use fails here, not in the middle of the load.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}; try cpu") from error


def prepare_torch(options: argparse.Namespace) -> None:
    """Sets what holds for the whole process that computes, before it loads."""
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    if options.deterministic:
        # Read when cuBLAS starts. Where CUDA has no such kernel (cumsum), torch warns and goes on.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def load(arguments: argparse.Namespace) -> Denoiser:
    """Loads the denoiser that the options name, frozen and in evaluation mode."""
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    started_s = time.monotonic()
    denoiser = checkpoints.load_denoiser(
        arguments.model,
        device=_device(arguments.device),
        dtype=dtype,
        trust_remote_code=arguments.trust_remote_code,
        run_self_test=not arguments.skip_self_test,
        mask_token_id=arguments.mask_token_id,
        alignment=arguments.alignment,
        block_length=arguments.block_length,
        adapters=arguments.adapter,
        quantization=arguments.quantization,
        tensor_parallel=arguments.tensor_parallel,
    )
    denoiser.eval().requires_grad_(False)
    _warn_of_slow_format(denoiser)
    logger.info("loaded model=%s load_s=%.1f", arguments.model, time.monotonic() - started_s)
    return denoiser


def _warn_of_slow_format(denoiser: Denoiser) -> None:
    """Not changed by itself: other numbers are another revision."""
    dtype = denoiser.head_weight.dtype
    if denoiser.device.type != "cpu" or dtype == torch.float32:
        return
    speedup = float32_speedup(dtype)
    if speedup > _SLOW_FORMAT:
        logger.warning(
            "slow_format dtype=%s: a linear layer takes %.1f times as long as in float32 on this "
            "CPU; --dtype float32 is faster and needs more memory",
            dtype,
            speedup,
        )
