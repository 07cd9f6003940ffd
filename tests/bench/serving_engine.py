"""`python -m tests.bench.serving_engine ...`: the engine's process of a `serving_server`."""

import argparse
import json
import sys

import torch

from masked_diffusion.families import Denoiser
from teacher_server.engine import engine_process
from teacher_server.engine.engine import Engine
from tests.bench import cores, serving_model
from tests.bench.baselines.request_batching import (
    LeanRequestBatchingEngine,
    PaddedQwen2,
    RequestBatchingEngine,
)

ENGINES: dict[str, type[Engine]] = {
    "step": Engine,
    "request": RequestBatchingEngine,
    "lean request": LeanRequestBatchingEngine,
}


def _build(options: argparse.Namespace) -> Denoiser:
    bench = options.bench
    denoiser = serving_model.build(serving_model.ModelSize(**bench["size"]))
    if not issubclass(ENGINES[bench["batching"]], LeanRequestBatchingEngine):
        return denoiser
    mask_token_id = denoiser.info.mask_token_id
    return PaddedQwen2(denoiser.model, None, name="bench", mask_token_id=mask_token_id).eval()


def main() -> None:
    """Runs with the first core for itself."""
    bench = json.loads(sys.argv[3])["bench"]
    torch.set_num_threads(1)
    cores.pin_among(min, frozenset(bench["cores"]))
    engine_process.main(engine_class=ENGINES[bench["batching"]], load_denoiser=_build)


if __name__ == "__main__":
    main()
