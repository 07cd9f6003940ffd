"""`python -m tests.bench.serving_bare JSON`: the model in a loop, on the core that an engine has.

Prints JSON. `task` "bare": tokens per second on an ideal batch of equal rows, for each batch size.
"original": collected positions per second of the scheme in `baselines/original.py`.
"""

import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from protos import teacher_pb2 as pb
from tests.bench import cores, serving_mix, serving_model
from tests.bench.baselines import original

# Where rows of 32 to 512 tokens have their mean attention a token: E[L^2] / E[L].
_ROW_LENGTH = 352
_HEAD_ELEMENTS = 16_777_216


def main() -> None:
    """Runs the task that the argument names."""
    cores.pin(min)
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    size = serving_model.ModelSize(**options["size"])
    denoiser = serving_model.build(size)
    seconds = options["seconds"]
    if options["task"] == "original":
        mix = serving_mix.Mix(
            vocab_size=size.vocab_size, max_length=size.max_length, seed=0, is_original=True
        )
        print(json.dumps(_original(denoiser, mix, seconds=seconds)))
    else:
        speeds = {
            num_tokens: _bare(denoiser, num_tokens, options["head_share"], seconds=seconds)
            for num_tokens in options["batch_tokens"]
        }
        print(json.dumps({"tokens_per_s": speeds}))


@torch.inference_mode()
def _bare(denoiser: Denoiser, num_tokens: int, head_share: float, *, seconds: float) -> float:
    num_rows = max(1, num_tokens // _ROW_LENGTH)
    x_BL = torch.randint(3, denoiser.info.vocab_size - 1, (num_rows, _ROW_LENGTH))
    num_positions = round(head_share * x_BL.numel())
    num_at_once = max(1, _HEAD_ELEMENTS // denoiser.info.vocab_size)
    times: list[float] = []
    end_s = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < end_s:
        started_s = time.monotonic()
        hidden_BLD = denoiser.hidden_states(x_BL)
        for hidden_MD in hidden_BLD.flatten(0, 1)[:num_positions].split(num_at_once):
            denoiser.logits(hidden_MD)
        times.append(time.monotonic() - started_s)
    # The first one warms up.
    return x_BL.numel() / float(np.median(times[1:]))


def _original(denoiser: Denoiser, mix: serving_mix.Mix, *, seconds: float) -> dict[str, float]:
    num_positions = num_requests = 0
    started_s = time.monotonic()
    for request in _requests(mix):
        ids = np.frombuffer(request.start_states.token_ids, dtype="<i4").astype(np.int64)
        collected = original.collect(
            denoiser,
            torch.from_numpy(ids.reshape(serving_mix.ROWS, -1)),
            num_steps=request.sampler.num_steps,
            temperature=request.sampler.temperature,
            top_k=request.sampler.top_k,
            every_n_steps=serving_mix.COLLECT_EVERY_N_STEPS,
        )
        num_positions += sum(len(logits_MV) for logits_MV in collected)
        num_requests += 1
        elapsed_s = time.monotonic() - started_s
        if elapsed_s > seconds:
            break
    return {"positions_per_s": num_positions / elapsed_s, "num_requests": num_requests}


def _requests(mix: serving_mix.Mix) -> Iterator[pb.SampleTrajectoriesRequest]:
    index = 0
    while True:
        request = mix.request(index)
        assert isinstance(request, pb.SampleTrajectoriesRequest)
        yield request
        index += 1


if __name__ == "__main__":
    main()
