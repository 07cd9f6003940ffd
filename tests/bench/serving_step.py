"""`python -m tests.bench.serving_step JSON`: an engine's step against the bare model's.

For models whose step takes too long to serve a mix. The argument is a `ModelSize` with `max_tokens`
of the step. Prints JSON: seconds and tokens of a step of ragged rows of the serving mix, sampling
and encoding included, and of an equal-length batch, on one core, in turns.
"""

import json
import sys
import time

import torch

from protos import teacher_pb2 as pb
from teacher_server.config import EngineConfig, LimitsConfig
from teacher_server.engine.engine import Engine
from teacher_server.engine.stream import OutputWindow, StreamItem
from teacher_server.requests import RequestParser
from tests.bench import cores, serving_mix, serving_model
from tests.bench.serving_bare import speed

_NUM_STEPS = 2
"""The first warms up."""


class _Dropped(OutputWindow):
    """Nobody reads it, and it never fills."""

    def _deliver(self, item: StreamItem) -> None:
        pass


class _SteppedEngine(Engine):
    """Steps when it is told."""

    def step(self) -> dict[str, float]:
        """Runs one batch; what the counters rose by."""
        before = self.snapshot()
        started_s = time.monotonic()
        while self.counters.num_forwards == before.num_forwards:
            self._round()
        after = self.snapshot()
        return {
            "seconds": time.monotonic() - started_s,
            "tokens": after.num_forward_tokens - before.num_forward_tokens,
            "head_positions": after.num_head_positions - before.num_head_positions,
            "rows": after.num_forward_rows - before.num_forward_rows,
        }


def main() -> None:
    """Measures."""
    cores.pin(min)
    torch.set_num_threads(1)
    fields = json.loads(sys.argv[1])
    max_tokens = fields.pop("max_tokens")
    size = serving_model.ModelSize(**fields)
    denoiser = serving_model.build(size)
    engine = _SteppedEngine(denoiser, EngineConfig(max_batch_tokens=max_tokens), revision="bench")
    parser = RequestParser(denoiser.info, LimitsConfig(), model_dtype="f32", revision="bench")
    for client in range(8):
        mix = serving_mix.Mix(vocab_size=size.vocab_size, max_length=size.max_length, seed=client)
        message = mix.request(0)
        stream = _Dropped(window_bytes=1 << 40, on_room=lambda: None)
        request = (
            parser.score(message, stream, remaining_s=None)
            if isinstance(message, pb.ScoreStatesRequest)
            else parser.trajectories(message, stream, remaining_s=None)
        )
        request.client_id = f"client{client}"
        engine.submit(request)
    for _ in range(_NUM_STEPS):
        step = engine.step()
        head_share = step["head_positions"] / step["tokens"]
        bare = speed(denoiser, round(step["tokens"]), head_share, seconds=0.0, num_times=1)
    print(json.dumps(step | {"bare_tokens_per_s": bare}))


if __name__ == "__main__":
    main()
