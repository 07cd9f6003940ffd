import numpy as np
import pytest
import torch

from protos import teacher_pb2 as pb
from tests.bench import serving_mix, serving_model
from tests.bench.baselines import original
from tests.bench.baselines.request_batching import PaddedQwen2, RequestBatchingEngine
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


def test_batches_of_whole_requests_run_to_their_end_before_others_begin():
    built = serving_model.build(SIZE)
    denoiser = PaddedQwen2(built.model, None, name="bench", mask_token_id=63).eval()
    sampler = pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=6)
    config = {"hold_until_rows": 6, "max_batch_tokens": 64}
    with run_engine(denoiser, engine_class=RequestBatchingEngine, **config) as run:
        requests = []
        for seed in range(3):
            states = [
                calls.make_state(denoiser.info, length=16, num_masked=12, seed=10 * seed + row)
                for row in range(2)
            ]
            requests.append(run.sample(calls.trajectory_request(states, sampler=sampler)))
        for request in requests:
            assert run.read(request)[2] is None
        counters = run.engine.snapshot()
        run.assert_nothing_is_left()
    # Two requests fit; the third waits for both to end.
    assert counters.num_forwards == pytest.approx(12, abs=2)
    assert counters.num_forward_rows < 4 * counters.num_forwards
