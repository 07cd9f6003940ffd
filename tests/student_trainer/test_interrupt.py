"""SIGTERM as a request, for as long as somebody looks at it."""

import os
import signal
import threading

from student_trainer.interrupt import StopRequest


def test_the_signal_is_a_request_within_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert not request.is_set
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_set
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_gets_no_signals_leaves_them_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopRequest() as request:
            found.append((request.is_set, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]
