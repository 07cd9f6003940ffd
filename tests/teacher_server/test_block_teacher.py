"""A block-causal teacher over a socket: block samplers, guided and plain rows side by side."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from protos import teacher_pb2 as pb
from student_trainer.wire import sequences_message
from teacher_server import names
from tests import servers
from tests.fixtures.block_diffusion import FIXTURES
from tests.sampler_choices import choices
from tests.teacher_server import calls

ALGORITHMS = ("low_confidence", "low_confidence_dynamic", "entropy_bounded", "p2")
NUM_STEPS = 9


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    folder = tmp_path_factory.mktemp("sdar")
    FIXTURES[0].build(folder)
    return load_denoiser(str(folder)).requires_grad_(False)


@pytest.fixture(scope="module")
def running(denoiser: Denoiser) -> Iterator[servers.RunningServer]:
    with servers.serve(denoiser) as server:
        yield server


def _starts(denoiser: Denoiser) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=length, num_masked=length - 3, seed=length)
        for length in (17, 9, 13)
    ]


def _request(denoiser: Denoiser, algorithm: str, scale: float) -> pb.SampleTrajectoriesRequest:
    sampler = pb.SamplerSpec(
        algorithm=names.value_of(names.ALGORITHMS, algorithm),
        num_steps=NUM_STEPS,
        temperature=0.8,
        guidance_scale=scale,
        **(choices(algorithm) | {"block_length": 0}),  # type: ignore[arg-type]
    )
    return calls.trajectory_request(_starts(denoiser), sampler=sampler)


def _in_process(
    denoiser: Denoiser, request: pb.SampleTrajectoriesRequest, algorithm: str, scale: float
) -> list[np.ndarray]:
    starts = _starts(denoiser)
    x_BL = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(start.astype(np.int64)) for start in starts], batch_first=True
    )
    lengths_B = torch.tensor([len(start) for start in starts])
    result = sample(
        denoiser,
        x_BL,
        frozen_BL=x_BL != denoiser.info.mask_token_id,
        lengths_B=lengths_B,
        config=SamplerConfig(
            algorithm=algorithm,
            num_steps=NUM_STEPS,
            temperature=0.8,
            guidance_scale=scale,
            **(choices(algorithm) | {"block_length": 0}),  # type: ignore[arg-type]
        ),
        seeds=list(request.seeds),
        sequence_ids=list(request.start_states.sequence_ids),
    )
    return [row[:length].numpy() for row, length in zip(result.x, lengths_B, strict=True)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_guided_and_plain_trajectories_at_once_are_those_of_the_in_process_loop(
    algorithm: str, running: servers.RunningServer, denoiser: Denoiser
) -> None:
    scales: tuple[float, ...] = (0.0, 1.5)
    answers: dict[float, calls.Answers] = {}

    def ask(scale: float) -> None:
        with calls.connect(running.address) as stub:
            request = _request(denoiser, algorithm, scale)
            answers[scale] = calls.collect(stub.SampleTrajectories(request))

    threads = [threading.Thread(target=ask, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for scale in scales:
        request = _request(denoiser, algorithm, scale)
        expected = _in_process(denoiser, request, algorithm, scale)
        ends = answers[scale].trajectories
        for sequence_id, ids_L in zip(request.start_states.sequence_ids, expected, strict=True):
            assert np.array_equal(calls.int32(ends[sequence_id].token_ids), ids_L)
            assert not (ids_L == denoiser.info.mask_token_id).any()
    assert running.engine.load().num_live_rows == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_trajectory_ends_as_the_whole_one_without_its_cached_blocks(
    algorithm: str, running: servers.RunningServer, denoiser: Denoiser
) -> None:
    start = _starts(denoiser)[0]
    request = _request(denoiser, algorithm, 0.0)
    request.start_states.CopyFrom(sequences_message([0], [start]))
    del request.seeds[1:]
    request.capture.kind, request.capture.every_n_steps = pb.CAPTURE_KIND_EVERY_N, 1
    frozen = start != denoiser.info.mask_token_id
    with calls.connect(running.address) as stub:
        whole = calls.collect(stub.SampleTrajectories(request))
        for index, last in enumerate(whole.targets):
            resumed = calls.resumed_after(request, last, frozen=frozen)
            rest = calls.collect(stub.SampleTrajectories(resumed))
            left = whole.targets[index + 1 :]
            assert [record.state_digest for record in rest.targets] == [
                record.state_digest for record in left
            ]
            assert rest.trajectories[0].token_ids == whole.trajectories[0].token_ids
