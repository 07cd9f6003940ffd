"""Classifier-free guidance over a socket, beside the in-process loop and slow combinations."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig, algorithms_for
from masked_diffusion.sampling import sample
from protos import codec
from protos import teacher_pb2 as pb
from teacher_server import names
from tests import servers
from tests.biased_denoiser import BiasedDenoiser
from tests.sampler_choices import choices
from tests.teacher_server import calls
from tests.teacher_server.calls import collect, connect, int32

ALGORITHMS = algorithms_for("absorbing")
SCALE, NUM_STEPS = 1.5, 7
# Padding and the order of sums move float32 values of order 1 by some units of 2**-23, which
# guidance makes 1 + 2 * SCALE times as large.
ATOL = 4e-5
EVERY_STEP = pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1)
DRAW = {"num_steps": NUM_STEPS, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "alg_temp": 0.3}


@pytest.fixture(scope="module")
def denoiser(tiny_denoiser: Denoiser) -> BiasedDenoiser:
    """Its head has a bias, which guidance must leave as it is."""
    generator = torch.Generator().manual_seed(5)
    return BiasedDenoiser(
        tiny_denoiser, torch.randn(tiny_denoiser.info.padded_vocab_size, generator=generator)
    )


@pytest.fixture(scope="module")
def running(denoiser: BiasedDenoiser) -> Iterator[servers.RunningServer]:
    with servers.serve(denoiser) as server:
        yield server


def _starts(denoiser: Denoiser) -> list[np.ndarray]:
    sizes = [(12, 7), (30, 24), (5, 1), (9, 0)]
    return [
        calls.make_state(denoiser.info, length=length, num_masked=num_masked, seed=length)
        for length, num_masked in sizes
    ]


def _request(
    algorithm: str, starts: Sequence[np.ndarray], *, scale: float = SCALE, **how: object
) -> pb.SampleTrajectoriesRequest:
    sampler = pb.SamplerSpec(
        algorithm=names.value_of(names.ALGORITHMS, algorithm),
        guidance_scale=scale,
        **(DRAW | choices(algorithm)),  # type: ignore[arg-type]
    )
    return calls.trajectory_request(starts, sampler=sampler, **how)  # type: ignore[arg-type]


def _guided_hidden(denoiser: Denoiser, state: np.ndarray, given: np.ndarray) -> np.ndarray:
    """[L, D] float64: two forwards of one sequence alone, combined."""
    free = np.where(given, denoiser.info.mask_token_id, state)
    h, u = (calls.hidden_of(denoiser, ids).astype(np.float64) for ids in (state, free))
    return u + (SCALE + 1) * (h - u)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_guided_trajectories_are_those_of_the_in_process_loop(
    algorithm: str, running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    starts = _starts(denoiser)
    request = _request(algorithm, starts)
    with connect(running.address) as stub:
        answers = collect(stub.SampleTrajectories(request))
        plain = collect(stub.SampleTrajectories(_request(algorithm, starts, scale=0.0)))
    x_BL = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(start).long() for start in starts], batch_first=True
    )
    result = sample(
        denoiser,
        x_BL,
        frozen_BL=x_BL != denoiser.info.mask_token_id,
        lengths_B=torch.tensor([len(start) for start in starts]),
        config=SamplerConfig(
            algorithm=algorithm,
            guidance_scale=SCALE,
            **(DRAW | choices(algorithm)),  # type: ignore[arg-type]
        ),
        seeds=list(request.seeds),
        sequence_ids=list(range(len(starts))),
    )
    for b, start in enumerate(starts):
        record = answers.trajectories[b]
        np.testing.assert_array_equal(int32(record.token_ids), result.x[b, : len(start)])
        np.testing.assert_array_equal(
            int32(record.unmask_steps), result.unmask_steps_BL[b, : len(start)]
        )
        assert record.num_forwards == result.num_forwards_B[b]
        assert record.num_forwards % 2 == 0
    assert answers.trajectories[1].token_ids != plain.trajectories[1].token_ids


@pytest.mark.parametrize("algorithm", ["p2", "low_confidence", "ancestral"])
def test_captured_targets_are_those_of_the_guided_teacher(
    algorithm: str, running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    """Hidden states that combine two forwards, and the log-probabilities of combined logits."""
    start = calls.make_state(denoiser.info, length=20, num_masked=14)
    given, mask = start != denoiser.info.mask_token_id, denoiser.info.mask_token_id
    records: dict[int, list[codec.StepTargets]] = {}
    with connect(running.address) as stub:
        for encoding in (pb.ENCODING_HIDDEN, pb.ENCODING_LOGITS):
            targets = pb.TargetSpec(encoding=encoding, dtype=pb.VALUE_DTYPE_F32)
            request = _request(algorithm, [start], capture=EVERY_STEP, targets=targets)
            records[encoding] = collect(stub.SampleTrajectories(request)).targets
    assert len(records[pb.ENCODING_HIDDEN]) > 3
    weight_VD = denoiser.head_weight[: denoiser.info.vocab_size].double().numpy()
    bias_V = denoiser.bias_V[: denoiser.info.vocab_size].double().numpy()
    for hidden, logits in zip(*records.values(), strict=True):
        assert hidden.state is not None and isinstance(hidden.distribution, codec.Hidden)
        assert isinstance(logits.distribution, codec.Logits)
        guided_MD = _guided_hidden(denoiser, hidden.state, given)[hidden.positions]
        np.testing.assert_allclose(hidden.distribution.values.data, guided_MD, atol=ATOL, rtol=0)
        logits_MV = guided_MD @ weight_VD.T + bias_V
        logits_MV[:, mask] = -np.inf
        expected_MV = torch.log_softmax(torch.from_numpy(logits_MV), -1).numpy()
        assert np.isneginf(logits.distribution.values.data[:, mask]).all()
        np.testing.assert_allclose(logits.distribution.values.data, expected_MV, atol=ATOL, rtol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_guided_trajectory_counts_two_forwards_a_step(
    algorithm: str, running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    # Fewer masks than steps, so that some collected steps are idle.
    start = calls.make_state(denoiser.info, length=14, num_masked=5)
    frozen = start != denoiser.info.mask_token_id
    request = _request(algorithm, [start], capture=EVERY_STEP)
    with connect(running.address) as stub:
        whole = collect(stub.SampleTrajectories(request))
        assert [record.num_forwards % 2 for record in whole.targets] == [0] * len(whole.targets)
        for index, last in enumerate(whole.targets):
            resumed = calls.resumed_after(request, last, frozen=frozen, forwards_per_step=2)
            rest = collect(stub.SampleTrajectories(resumed))
            left = whole.targets[index + 1 :]
            assert [(r.step, r.num_forwards) for r in rest.targets] == [
                (r.step, r.num_forwards) for r in left
            ]
            end, expected_end = rest.trajectories[0], whole.trajectories[0]
            end.num_collected_steps = expected_end.num_collected_steps
            assert end == expected_end


def test_more_forwards_than_two_a_step_are_refused(
    running: servers.RunningServer, denoiser: BiasedDenoiser
) -> None:
    start = calls.make_state(denoiser.info, length=14, num_masked=5)
    request = _request("p2", [start])
    request.frozen = (start != denoiser.info.mask_token_id).astype(np.uint8).tobytes()
    request.resume.start_steps.append(3)
    request.resume.last_collected_steps.append(-1)
    request.resume.unmask_steps = np.full(14, -1, dtype="<i4").tobytes()
    request.resume.num_forwards.append(6)
    with connect(running.address) as stub:
        assert len(collect(stub.SampleTrajectories(request)).trajectories) == 1
        request.resume.num_forwards[0] = 7
        told = calls.refusal(lambda: collect(stub.SampleTrajectories(request)))
    assert told.field == "resume.num_forwards"
    assert "must be in [0, 6], got 7" in told.message
