"""Drawing the mask id over a socket: as in process, and said in the trajectory's record."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig, algorithms_for
from masked_diffusion.sampling import sample
from protos import codec
from protos import teacher_pb2 as pb
from student_trainer import wire
from student_trainer.client import TeacherClient
from teacher_server import names
from tests import servers
from tests.biased_denoiser import BiasedDenoiser, favouring_the_mask
from tests.sampler_choices import choices
from tests.teacher_server import calls
from tests.teacher_server.calls import collect, connect, int32

ALGORITHMS = algorithms_for("absorbing")
DRAWS_MASKS = [algorithm for algorithm in ALGORITHMS if algorithm != "ancestral"]
DRAW = {"num_steps": 6, "temperature": 1.0}
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)


@pytest.fixture(scope="module")
def denoiser(tiny_denoiser: Denoiser) -> BiasedDenoiser:
    """About as likely to say the mask as anything else."""
    return favouring_the_mask(tiny_denoiser, 5.0)


@pytest.fixture(scope="module")
def running(denoiser: BiasedDenoiser) -> Iterator[servers.RunningServer]:
    with servers.serve(denoiser) as server:
        yield server


def _starts(denoiser: Denoiser) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=length, num_masked=length - 3, seed=length)
        for length in (16, 11, 20)
    ]


def _sampler(algorithm: str, *, sample_mask_token: bool) -> pb.SamplerSpec:
    return pb.SamplerSpec(
        algorithm=names.value_of(names.ALGORITHMS, algorithm),
        sample_mask_token=sample_mask_token,
        **(DRAW | choices(algorithm)),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("algorithm", DRAWS_MASKS)
def test_the_mask_id_is_drawn_as_in_process_and_the_record_says_that_it_could_be(
    algorithm: str, running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    starts, mask = _starts(denoiser), denoiser.info.mask_token_id
    request = calls.trajectory_request(starts, sampler=_sampler(algorithm, sample_mask_token=True))
    with connect(running.address) as stub:
        answers = collect(stub.SampleTrajectories(request))
    x_BL = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(start).long() for start in starts], batch_first=True
    )
    result = sample(
        denoiser,
        x_BL,
        frozen_BL=x_BL != mask,
        lengths_B=torch.tensor([len(start) for start in starts]),
        config=SamplerConfig(
            algorithm=algorithm,
            suppress_mask_token=False,
            **(DRAW | choices(algorithm)),  # type: ignore[arg-type]
        ),
        seeds=list(request.seeds),
        sequence_ids=list(range(len(starts))),
    )
    num_masks_left = 0
    for b, start in enumerate(starts):
        record, length = answers.trajectories[b], len(start)
        final = int32(record.token_ids)
        assert not record.mask_token_suppressed
        np.testing.assert_array_equal(final, result.x[b, :length])
        np.testing.assert_array_equal(
            int32(record.unmask_steps), result.unmask_steps_BL[b, :length]
        )
        assert record.num_forwards == result.num_forwards_B[b]
        is_left = final == mask
        np.testing.assert_array_equal(int32(record.unmask_steps) == -1, is_left | (start != mask))
        num_masks_left += is_left.sum()
    assert num_masks_left > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mask_id_is_never_drawn_unless_asked_for(
    algorithm: str, running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    request = calls.trajectory_request(
        _starts(denoiser), sampler=_sampler(algorithm, sample_mask_token=False)
    )
    with connect(running.address) as stub:
        records = collect(stub.SampleTrajectories(request)).trajectories
    assert len(records) == 3
    for record in records.values():
        assert record.mask_token_suppressed
        assert denoiser.info.mask_token_id not in int32(record.token_ids)


def test_targets_never_include_the_mask_id(
    running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    request = calls.trajectory_request(
        _starts(denoiser),
        sampler=_sampler("origin", sample_mask_token=True),
        capture=EVERY_STEP,
        targets=pb.TargetSpec(encoding=pb.ENCODING_LOGITS),
    )
    with connect(running.address) as stub:
        records = collect(stub.SampleTrajectories(request)).targets
    assert len(records) > 3
    for record in records:
        assert isinstance(record.distribution, codec.Logits)
        log_probs_MV = record.distribution.values.data
        assert np.isneginf(log_probs_MV[:, denoiser.info.mask_token_id]).all()
        # What is left is normalised: float32 sums of 300 terms.
        np.testing.assert_allclose(np.exp(log_probs_MV.astype(np.float64)).sum(-1), 1, atol=1e-5)


def test_the_client_asks_for_it_and_is_told(
    running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    for suppress in (True, False):
        with TeacherClient(running.address) as client:
            ends = [
                item
                for item in client.sample(
                    _starts(denoiser),
                    sequence_ids=range(3),
                    seeds=range(3),
                    sampler=wire.SamplerSpec(
                        algorithm="random",
                        num_steps=4,
                        temperature=1.0,
                        suppress_mask_token=suppress,
                    ),
                    capture=wire.CaptureSpec(),
                    targets=wire.TargetSpec(),
                )
                if isinstance(item, wire.Trajectory)
            ]
        masks = sum((end.token_ids_L == denoiser.info.mask_token_id).sum() for end in ends)
        assert [end.mask_token_suppressed for end in ends] == [suppress] * 3
        assert (masks == 0) == suppress
