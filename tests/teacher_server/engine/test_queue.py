import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from masked_diffusion.families import Denoiser
from protos import errors
from teacher_server.config import LimitsConfig
from teacher_server.engine.queue import AdmissionQueue
from teacher_server.engine.sequence import Request
from teacher_server.engine.stream import OutputStream
from teacher_server.requests import RequestParser
from tests.teacher_server import calls

WAIT_S = 20.0


def _request(denoiser: Denoiser, num_tokens: int) -> Request:
    parser = RequestParser(denoiser.info, LimitsConfig(), model_dtype="f32", revision="")
    state = calls.make_state(denoiser.info, length=num_tokens, num_masked=1)
    # Nothing is written to the stream here, so it needs no loop.
    stream = OutputStream(loop=None, window_bytes=1, on_room=lambda: None)  # type: ignore[arg-type]
    return parser.score(calls.score_request([state]), stream, remaining_s=None)


def _retry_after_s() -> float:
    return 2.5


def test_admitted_tokens_count_until_they_are_released(tiny_denoiser: Denoiser) -> None:
    queue = AdmissionQueue(max_tokens=20)
    first, second = _request(tiny_denoiser, 12), _request(tiny_denoiser, 9)
    queue.submit(first, retry_after_s=_retry_after_s)
    assert queue.take(timeout_s=0) == ([first], [])
    assert queue.num_tokens == 12
    with pytest.raises(errors.OverloadedError, match="9, limit 20") as raised:
        queue.submit(second, retry_after_s=_retry_after_s)
    assert raised.value.retry_after_s == 2.5
    queue.release(12)
    queue.submit(second, retry_after_s=_retry_after_s)
    assert queue.take(timeout_s=0) == ([second], [])


def test_a_request_above_the_limit_is_admitted_where_nothing_else_is(
    tiny_denoiser: Denoiser,
) -> None:
    queue = AdmissionQueue(max_tokens=5)
    queue.submit(_request(tiny_denoiser, 12), retry_after_s=_retry_after_s)
    with pytest.raises(errors.OverloadedError):
        queue.submit(_request(tiny_denoiser, 2), retry_after_s=_retry_after_s)


def test_a_draining_queue_refuses_and_keeps_what_it_has(tiny_denoiser: Denoiser) -> None:
    queue = AdmissionQueue(max_tokens=100)
    request = _request(tiny_denoiser, 12)
    queue.submit(request, retry_after_s=_retry_after_s)
    queue.drain()
    assert queue.draining
    with pytest.raises(errors.DrainingError):
        queue.submit(_request(tiny_denoiser, 2), retry_after_s=_retry_after_s)
    assert queue.take(timeout_s=0) == ([request], [])


def test_a_failed_queue_refuses_with_its_failure(tiny_denoiser: Denoiser) -> None:
    queue = AdmissionQueue(max_tokens=100)
    queue.fail(errors.EngineError("the engine died: boom"))
    with pytest.raises(errors.EngineError, match="boom"):
        queue.submit(_request(tiny_denoiser, 2), retry_after_s=_retry_after_s)


def test_closed_requests_come_once_and_behind_new_ones(tiny_denoiser: Denoiser) -> None:
    queue = AdmissionQueue(max_tokens=100)
    request = _request(tiny_denoiser, 3)
    queue.submit(request, retry_after_s=_retry_after_s)
    queue.close(request)
    assert queue.take(timeout_s=0) == ([request], [request])
    assert queue.take(timeout_s=0) == ([], [])


def test_a_wake_before_the_wait_is_not_lost() -> None:
    queue = AdmissionQueue(max_tokens=100)
    queue.wake()
    # It would take the whole of the time limit of this test.
    assert queue.take(timeout_s=1e6) == ([], [])


def test_a_waiting_engine_is_woken_by_a_request(tiny_denoiser: Denoiser) -> None:
    queue = AdmissionQueue(max_tokens=100)
    request = _request(tiny_denoiser, 3)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, timeout_s=1e6)
        queue.submit(request, retry_after_s=_retry_after_s)
        assert taken.result(WAIT_S) == ([request], [])


def test_a_drain_waits_for_the_last_token_and_no_longer_than_its_limit(
    tiny_denoiser: Denoiser,
) -> None:
    queue = AdmissionQueue(max_tokens=100)
    queue.submit(_request(tiny_denoiser, 3), retry_after_s=_retry_after_s)
    assert not queue.wait_empty(timeout_s=0.01)
    releaser = threading.Thread(target=queue.release, args=(3,))
    releaser.start()
    assert queue.wait_empty(timeout_s=WAIT_S)
    releaser.join()
