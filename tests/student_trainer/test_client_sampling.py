"""Broken connections with the samplers' own choices: what is resumed is what a whole one gives."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from masked_diffusion.families import Denoiser
from protos import codec
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.replicas import RetryPolicy
from tests.biased_denoiser import BiasedDenoiser, favouring_the_mask
from tests.sampler_choices import choices
from tests.servers import RunningServer, serve
from tests.tcp_proxy import TcpProxy
from tests.teacher_server.calls import make_state

PATIENT = RetryPolicy(call_timeout_s=60.0, give_up_after_s=30.0)
NUM_STEPS = 12
CHOICES: dict[str, dict[str, object]] = {
    "guided p2": {"algorithm": "p2", "guidance_scale": 1.5},
    "guided origin": {"algorithm": "origin", "guidance_scale": 0.5, "temperature": 0.9},
    "p2 that draws masks": {"algorithm": "p2", "suppress_mask_token": False, "temperature": 1.0},
    "guided blocks that draw masks": {
        "algorithm": "low_confidence",
        "suppress_mask_token": False,
        "guidance_scale": 1.0,
        "temperature": 1.0,
        "block_length": 5,
    },
    "guided entropy bound": {
        "algorithm": "entropy_bounded",
        "guidance_scale": 2.0,
        **choices("entropy_bounded"),
    },
    "ancestral": {"algorithm": "ancestral", "temperature": 0.9},
}


@pytest.fixture(scope="module")
def denoiser(tiny_denoiser: Denoiser) -> BiasedDenoiser:
    return favouring_the_mask(tiny_denoiser, 5.0)


@pytest.fixture(scope="module")
def server(denoiser: BiasedDenoiser) -> Iterator[RunningServer]:
    """One row a step, so that equal requests have bit-identical answers."""
    with serve(denoiser, deterministic=True) as running:
        yield running


def _sample(
    client: TeacherClient, starts: Sequence[np.ndarray], choice: str
) -> dict[int, list[tuple[object, ...]]]:
    """All that is said of each sequence, in order."""
    said: dict[int, list[tuple[object, ...]]] = {index: [] for index in range(len(starts))}
    for item in client.sample(
        starts,
        sequence_ids=range(len(starts)),
        seeds=range(len(starts)),
        sampler=wire.SamplerSpec(num_steps=NUM_STEPS, **CHOICES[choice]),  # type: ignore[arg-type]
        capture=wire.CaptureSpec(every_n_steps=2),
        targets=wire.TargetSpec(encoding="hidden"),
    ):
        if isinstance(item, wire.Trajectory):
            arrays, fact = [item.token_ids_L, item.unmask_steps_L], int(item.mask_token_suppressed)
        else:
            assert isinstance(item.distribution, codec.Hidden)
            assert item.state is not None and item.unmask_steps is not None
            arrays, fact = (
                [item.state, item.unmask_steps, item.distribution.values.data],
                item.step,
            )
        said[item.sequence_id].append(
            (fact, item.num_forwards, *(array.tobytes() for array in arrays))
        )
    return said


@pytest.mark.parametrize("choice", CHOICES)
def test_trajectories_of_broken_connections_are_those_of_a_whole_one(
    choice: str, server: RunningServer, denoiser: BiasedDenoiser
) -> None:
    starts = [
        make_state(denoiser.info, length=length, num_masked=length // 2, seed=seed)
        for seed, length in enumerate((60, 17, 42, 80, 33))
    ]
    with TeacherClient(server.address, retry=PATIENT) as client:
        whole = _sample(client, starts, choice)
        num_bytes = client.num_payload_bytes
    budgets = [num_bytes // 5, num_bytes // 4, num_bytes // 3]
    with (
        TcpProxy(server.address, budgets=budgets) as proxy,
        TeacherClient(proxy.address, retry=PATIENT) as client,
    ):
        pieced = _sample(client, starts, choice)
        assert proxy.num_cut == client.num_retries == len(budgets)
        # Nothing that arrived is sent again.
        assert client.num_payload_bytes == num_bytes
    assert pieced == whole
