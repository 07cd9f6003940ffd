from collections.abc import Sequence

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from protos import codec, errors
from protos import teacher_pb2 as pb
from student_trainer.wire import int32_bytes
from teacher_server.config import LimitsConfig
from teacher_server.engine.sequence import Request
from teacher_server.requests import RequestParser
from tests.fixtures.block_diffusion import FIXTURES, MASK_ID
from tests.teacher_server import calls
from tests.teacher_server.engines import EngineRun, run_engine

ATOL = 1e-5
SAMPLER = pb.SamplerSpec(algorithm=pb.ALGORITHM_MASKGIT_PLUS, num_steps=6)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    folder = tmp_path_factory.mktemp("sdar")
    FIXTURES[0].build(folder)
    return load_denoiser(str(folder)).requires_grad_(False)


def _states(denoiser: Denoiser) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """States and their clean ids, of several lengths."""
    states, cleans = [], []
    for length in (9, 14, 20):
        state = calls.make_state(denoiser.info, length=length, num_masked=length // 2, seed=length)
        ordinary = np.random.default_rng(length).integers(3, 290, length).astype(np.int32)
        states.append(state)
        cleans.append(np.where(state == MASK_ID, ordinary, state))
    return states, cleans


def _score(
    run: EngineRun, states: Sequence[np.ndarray], cleans: Sequence[np.ndarray] = ()
) -> Request:
    message = calls.score_request(states)
    message.clean_token_ids = int32_bytes(cleans)
    return run.submit(run._parser.score(message, run.stream(), remaining_s=None))


def _hidden(record: codec.StepTargets) -> torch.Tensor:
    assert isinstance(record.distribution, codec.Hidden)
    return torch.from_numpy(record.distribution.values.to_float32())


def _ids(row: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(row.astype(np.int64))[None]


def test_scores_see_the_clean_ids_that_were_sent(denoiser: Denoiser) -> None:
    states, cleans = _states(denoiser)
    with run_engine(denoiser) as run:
        with_clean, without = _score(run, states, cleans), _score(run, states)
        for request, is_clean in ((with_clean, True), (without, False)):
            records, _, error = run.read(request)
            assert error is None and len(records) == 3
            for record in records:
                state, clean = states[record.sequence_id], cleans[record.sequence_id]
                expected = denoiser(_ids(state), clean_ids_BL=_ids(clean) if is_clean else None)[0]
                assert np.array_equal(record.positions, np.flatnonzero(state == MASK_ID))
                torch.testing.assert_close(
                    _hidden(record), expected[record.positions.tolist()], atol=ATOL, rtol=0
                )
        run.assert_nothing_is_left()


def test_trajectories_have_targets_in_the_block_at_work_and_free_their_cache(
    denoiser: Denoiser,
) -> None:
    # One start with masks in its third block alone, one with all behind the first token.
    inner = _states(denoiser)[1][2].copy()
    inner[8:12] = MASK_ID
    whole = np.full(20, MASK_ID, dtype=np.int32)
    whole[:5] = inner[:5]
    message = calls.trajectory_request(
        [inner, whole],
        sampler=SAMPLER,
        capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1),
    )
    results = []
    for max_cache_bytes in (2**30, 0):
        with run_engine(denoiser, max_cache_bytes=max_cache_bytes) as run:
            records, done, error = run.read(run.sample(message))
            assert error is None and len(done) == 2
            for record in records:
                assert record.state is not None
                masked = np.flatnonzero(record.state == MASK_ID)
                end = (masked[0] // 4 + 1) * 4
                assert np.array_equal(record.positions, masked[masked < end])
                expected = denoiser(_ids(record.state))[0][record.positions.tolist()]
                torch.testing.assert_close(_hidden(record), expected, atol=ATOL, rtol=0)
            run.assert_nothing_is_left()
            calls.wait_until(lambda: run.engine._step.num_cache_bytes == 0)
            results.append({item.sequence_id: item.token_ids for item in done})
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("place", "token_id", "reason"),
    [
        (0, 5_000, "clean ids lie in the vocabulary"),
        (0, -1, "clean ids lie in the vocabulary"),
        (0, MASK_ID, "never the mask id"),
        (0, 7, "differs from its clean ids only where it is masked"),
    ],
)
def test_bad_clean_ids_are_refused(
    denoiser: Denoiser, place: int, token_id: int, reason: str
) -> None:
    states, cleans = _states(denoiser)
    cleans[0] = cleans[0].copy()
    cleans[0][place] = token_id
    _assert_refused(denoiser, states, int32_bytes(cleans), reason)


def test_too_few_clean_ids_are_refused(denoiser: Denoiser) -> None:
    states, cleans = _states(denoiser)
    _assert_refused(denoiser, states, int32_bytes(cleans[:2]), "numbers of 4 bytes are announced")


def test_clean_ids_of_a_sequence_that_is_too_long_are_refused(denoiser: Denoiser) -> None:
    states, cleans = _states(denoiser)
    parser = RequestParser(
        denoiser.info, LimitsConfig(max_clean_length=19), model_dtype="f32", revision=""
    )
    message = calls.score_request(states)
    message.clean_token_ids = int32_bytes(cleans)
    with pytest.raises(errors.InvalidRequestError, match="a state of 20 tokens, limit 19"):
        parser.score(message, None, remaining_s=None)  # type: ignore[arg-type]


def test_full_attention_refuses_clean_ids(tiny_denoiser: Denoiser) -> None:
    state = calls.make_state(tiny_denoiser.info, length=6, num_masked=2)
    _assert_refused(tiny_denoiser, [state], int32_bytes([state]), "must be empty")


def _assert_refused(
    denoiser: Denoiser, states: Sequence[np.ndarray], clean: bytes, reason: str
) -> None:
    parser = RequestParser(denoiser.info, LimitsConfig(), model_dtype="f32", revision="revision")
    message = calls.score_request(states)
    message.clean_token_ids = clean
    with pytest.raises(errors.InvalidRequestError, match=f"clean_token_ids.*{reason}"):
        parser.score(message, None, remaining_s=None)  # type: ignore[arg-type]
