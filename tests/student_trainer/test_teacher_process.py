"""A teacher-server as a child process: ready, and gone afterwards.

How it tells why it could not start is in tests/integration/test_live_mode.py.
"""

import os

import psutil
import pytest

from student_trainer.client import TeacherClient
from student_trainer.teacher_process import TeacherProcess, TeacherStartError


def test_the_server_answers_during_the_block_and_is_gone_after_it(tiny_checkpoint, tmp_path):
    log_path = tmp_path / "logs" / "server.log"
    with (
        pytest.raises(KeyError, match="in the block"),
        TeacherProcess(
            str(tiny_checkpoint), log_path=log_path, extra_arguments=["--max-sequences=7"]
        ) as server,
    ):
        process = psutil.Process(server.pid)
        with TeacherClient(server.address) as client:
            assert client.describe().max_sequences == 7
        # A session of its own: Ctrl-C in the terminal is the trainer's to handle.
        assert os.getsid(server.pid) == server.pid
        raise KeyError("in the block")
    assert not process.is_running()
    log = log_path.read_text()
    assert "ready address=" in log
    assert "stopped drained=True" in log


def test_a_server_that_does_not_get_ready_in_time_is_killed(tiny_checkpoint, tmp_path):
    with (
        pytest.raises(TeacherStartError, match="ended with code -9"),
        TeacherProcess(str(tiny_checkpoint), log_path=tmp_path / "log", start_timeout_s=0.2),
    ):
        pass
    commands = [child.cmdline() for child in psutil.Process().children()]
    assert not any("teacher_server.server" in command for command in commands)
