import numpy as np
import pytest
import torch

from protos import teacher_pb2 as pb
from tests.bench import serving_mix, serving_model
from tests.bench.baselines import original
from tests.bench.baselines.request_batching import (
    LeanRequestBatchingEngine,
    PaddedQwen2,
    RequestBatchingEngine,
)
from tests.teacher_server import calls
from tests.teacher_server.engines import run_engine

SIZE = serving_model.ModelSize(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_key_value_heads=1,
)


def _mix(*, is_original: bool = False) -> serving_mix.Mix:
    return serving_mix.Mix(vocab_size=64, max_length=512, seed=3, is_original=is_original)


def test_a_client_always_asks_the_same_and_of_every_kind():
    requests = [_mix().request(index) for index in range(40)]
    assert requests == [_mix().request(index) for index in range(40)]
    trajectories = [one for one in requests if isinstance(one, pb.SampleTrajectoriesRequest)]
    assert 10 < len(trajectories) < 35
    assert len({one.sampler.algorithm for one in trajectories}) == 3
    assert len({one.targets.encoding for one in requests}) == 2
    lengths = [
        length
        for one in requests
        for length in (
            one.start_states if isinstance(one, pb.SampleTrajectoriesRequest) else one.states
        ).lengths
    ]
    assert min(lengths) < 60 and max(lengths) > 480


def test_the_original_scheme_collects_the_positions_that_the_served_one_does():
    denoiser = serving_model.build(SIZE)
    message = _mix(is_original=True).request(0)
    assert isinstance(message, pb.SampleTrajectoriesRequest)
    ids = np.frombuffer(message.start_states.token_ids, dtype="<i4").astype(np.int64)
    collected = original.collect(
        denoiser,
        torch.from_numpy(ids.reshape(serving_mix.ROWS, -1)),
        num_steps=message.sampler.num_steps,
        temperature=message.sampler.temperature,
        top_k=20,
        every_n_steps=serving_mix.COLLECT_EVERY_N_STEPS,
    )
    message.sampler.top_k = 20
    with run_engine(denoiser) as run:
        targets, _, error = run.read(run.sample(message))
    assert error is None
    served = dict.fromkeys(range(0, 16, serving_mix.COLLECT_EVERY_N_STEPS), 0)
    for record in targets:
        served[record.step] += len(record.positions)
    assert [len(logits_MV) for logits_MV in collected] == list(served.values())


@pytest.mark.parametrize("engine_class", [RequestBatchingEngine, LeanRequestBatchingEngine])
def test_batches_of_whole_requests_run_to_their_end_before_others_begin(
    engine_class: type[LeanRequestBatchingEngine],
) -> None:
    built = serving_model.build(SIZE)
    denoiser = PaddedQwen2(built.model, None, name="bench", mask_token_id=63).eval()
    config = {"hold_until_rows": 6, "max_batch_tokens": 64}
    with run_engine(denoiser, engine_class=engine_class, **config) as run:
        requests = []
        for seed, num_steps in enumerate((6, 2, 6)):
            states = [
                calls.make_state(denoiser.info, length=16, num_masked=12, seed=10 * seed + row)
                for row in range(2)
            ]
            sampler = pb.SamplerSpec(algorithm=pb.ALGORITHM_P2, num_steps=num_steps)
            requests.append(run.sample(calls.trajectory_request(states, sampler=sampler)))
        for request in requests:
            assert run.read(request)[2] is None
        counters = run.engine.snapshot()
        run.assert_nothing_is_left()
    # Two requests fit, one of them ends early; the third waits for both.
    assert counters.num_forwards == 12
    assert counters.num_forward_rows == 2 * 6 + 2 * 2 + 2 * 6
    num_rows = 4 * 6 + 2 * 6 if engine_class is RequestBatchingEngine else 28
    assert counters.num_padded_tokens == 16 * num_rows


def test_a_row_has_the_same_targets_in_a_batch_that_is_filled_up() -> None:
    built = serving_model.build(SIZE)
    denoiser = PaddedQwen2(built.model, None, name="bench", mask_token_id=63).eval()
    ids_BL = torch.randint(0, 63, (2, 9))
    mask_BL = torch.arange(9) < torch.tensor([[9], [5]])
    alone_BLD = denoiser.hidden_states(ids_BL, mask_BL)
    denoiser.num_rows = 5
    torch.testing.assert_close(denoiser.hidden_states(ids_BL, mask_BL), alone_BLD)
