"""`python -m tests.bench.serving_bare JSON`: the model in a loop, on the core that an engine has.

The argument is a `ModelSize`. Reads tasks, a line of JSON each, and answers each with one.
"bare": tokens a second on an ideal batch of equal rows, for each batch size. "original": collected
positions a second of the scheme in `baselines/original.py`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from protos import teacher_pb2 as pb
from tests.bench import cores, serving_mix, serving_model
from tests.bench.baselines import original

# Where rows of 32 to 512 tokens have their mean attention a token: E[L^2] / E[L].
ROW_LENGTH = 352
_HEAD_ELEMENTS = 16_777_216


def main() -> None:
    """Runs the tasks that it is given."""
    cores.pin(min)
    torch.set_num_threads(1)
    size = serving_model.ModelSize(**json.loads(sys.argv[1]))
    denoiser = serving_model.build(size)
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(_TASKS[task.pop("task")](denoiser, **task)), flush=True)


def _bare(
    denoiser: Denoiser, *, batch_tokens: list[int], head_share: float, seconds: float
) -> dict[str, Any]:
    speeds = {
        num_tokens: speed(denoiser, num_tokens, head_share, seconds=seconds)
        for num_tokens in batch_tokens
    }
    return {"tokens_per_s": speeds}


@torch.inference_mode()
def speed(
    denoiser: Denoiser,
    num_tokens: int,
    head_share: float,
    *,
    seconds: float,
    num_times: int = 3,
) -> float:
    """Tokens a second of equal rows, about so many tokens together: the median of these times.

    Args:
        head_share: Share of the positions that the head is applied to.
        seconds: How long to go on.
        num_times: How often at least; of several, the first one warms up.
    """
    num_rows = max(1, num_tokens // ROW_LENGTH)
    x_BL = torch.randint(3, denoiser.info.vocab_size - 1, (num_rows, ROW_LENGTH))
    num_positions = round(head_share * x_BL.numel())
    num_at_once = max(1, _HEAD_ELEMENTS // denoiser.info.vocab_size)
    times: list[float] = []
    end_s = time.monotonic() + seconds
    while len(times) < num_times or time.monotonic() < end_s:
        started_s = time.monotonic()
        hidden_BLD = denoiser.hidden_states(x_BL)
        for hidden_MD in hidden_BLD.flatten(0, 1)[:num_positions].split(num_at_once):
            denoiser.logits(hidden_MD)
        times.append(time.monotonic() - started_s)
    return x_BL.numel() / float(np.median(times[1:] or times))


def _original(denoiser: Denoiser, *, seconds: float) -> dict[str, Any]:
    mix = serving_mix.Mix(
        vocab_size=denoiser.info.vocab_size,
        max_length=denoiser.info.max_length,
        seed=0,
        is_original=True,
    )
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


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"bare": _bare, "original": _original}


if __name__ == "__main__":
    main()
