"""Programs that misbehave in every way we could think of end in time, and do no harm."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from student_trainer.tasks.sandbox.isolation import ISOLATIONS, SandboxError
from student_trainer.tasks.sandbox.limits import SandboxLimits
from student_trainer.tasks.sandbox.runner import run_sandboxed

QUICK = SandboxLimits(wall_s=1.5, cpu_s=1, memory_bytes=2**28, file_bytes=2**20)
PATIENT = SandboxLimits(wall_s=30.0, cpu_s=20)
MARGIN_S = 20.0
"""Beyond the limit: to start an interpreter and clear away on a machine with other work to do."""


@functools.cache
def has_namespaces() -> bool:
    """Asks another program, so that a mistake of ours is a failure and not a test left out."""
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "true",
    ]
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False).returncode == 0


@pytest.fixture
def namespaces() -> str:
    if not has_namespaces():
        pytest.skip("this machine allows no user namespaces")
    return "namespaces"


@pytest.fixture(params=sorted(ISOLATIONS))
def isolation(request):
    return request.getfixturevalue("namespaces") if request.param == "namespaces" else request.param


def run(program, isolation, limits=PATIENT):
    return run_sandboxed(textwrap.dedent(program), limits=limits, isolation=isolation)


def wait_for_end(pid: int) -> bool:
    """Whether a process ends within the margin; it may belong to anybody."""
    deadline = time.monotonic() + MARGIN_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
    return False


def test_a_program_that_ends_passes(isolation):
    outcome = run("import math\nassert math.sqrt(4) == 2", isolation)

    assert (outcome.verdict, outcome.detail) == ("passed", "")


def test_a_program_may_use_threads_and_the_installed_packages(isolation):
    program = """
        import threading
        import numpy
        thread = threading.Thread(target=numpy.ones, args=(3,))
        thread.start()
        thread.join()
        """
    assert run(program, isolation).verdict == "passed"


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("def broken(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("name = '\\0'\nraise ValueError", "ValueError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended before its tests did, with exit code 0"),
        ("input()", "EOFError: EOF when reading a line"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("def f():\n    f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("class E(Exception):\n    def __str__(self):\n        raise self\nraise E()", "E"),
    ],
)
def test_a_program_that_does_not_end_well_fails_with_the_reason(isolation, program, detail):
    outcome = run(program, isolation)

    assert (outcome.verdict, outcome.detail) == ("failed", detail)


ENDLESS = {
    "busy": "while True: pass",
    "asleep": "import time\ntime.sleep(1000)",
    "endless output": "while True: print('x' * 100_000)",
    "deaf to signals": "import signal, time\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 60))\nwhile True: time.sleep(1)",
    "catches all": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
}


def test_programs_without_end_are_stopped(isolation):
    begin = time.monotonic()

    with ThreadPoolExecutor(len(ENDLESS)) as pool:
        outcomes = list(pool.map(lambda p: run(p, isolation, QUICK), ENDLESS.values()))

    verdicts = dict(zip(ENDLESS, (outcome.verdict for outcome in outcomes), strict=True))
    assert verdicts == dict.fromkeys(ENDLESS, "timeout")
    assert time.monotonic() - begin < QUICK.wall_s + MARGIN_S


def test_a_memory_bomb_fails(isolation):
    outcome = run("hoard = []\nwhile True: hoard.append(bytearray(10**7))", isolation, QUICK)

    assert (outcome.verdict, outcome.detail) == ("failed", "MemoryError")


def test_processes_are_counted(isolation):
    program = f"""
        import os, time
        num_started = 0
        try:
            while num_started < 10 * {QUICK.num_processes}:
                if os.fork() == 0:
                    time.sleep(1000)
                num_started += 1
        except BlockingIOError:
            assert False, 'refused'
        assert False, num_started
        """
    outcome = run(program, isolation, QUICK)

    assert (outcome.verdict, outcome.detail) == ("failed", "AssertionError: refused")


@pytest.mark.parametrize("ending", ["", "os._exit(0)", "assert False"])
def test_a_process_left_behind_is_killed(isolation, ending):
    mark = f"left-{os.getpid()}-{isolation}"
    program = f"""
        import ctypes, os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                ctypes.CDLL(None).prctl(15, b"{mark[:15]}")  # PR_SET_NAME
                time.sleep(1000)
            os._exit(0)
        os.wait()
        {ending}
        """
    outcome = run(program, isolation)

    assert outcome.verdict == "failed"
    assert outcome.detail == "left processes behind" or ending
    assert mark[:15] not in process_names()


def process_names() -> set[str]:
    command = ["ps", "-eo", "comm="]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("path", ["/usr/written", "/tmp/written", "/written", "{here}/written"])
def test_nothing_outside_the_working_folder_can_be_written(namespaces, tmp_path, path):
    path = path.format(here=tmp_path)

    outcome = run(f"open({path!r}, 'w').write('x')", namespaces)

    assert outcome.verdict == "failed"
    assert "Read-only file system" in outcome.detail or "No such file" in outcome.detail
    assert not os.path.exists(path)


def test_the_working_folder_can_be_written_and_is_empty_again_next_time(isolation):
    program = "import os\nassert not os.listdir()\nopen('note', 'w').write('x')"

    assert [run(program, isolation).verdict for _ in range(2)] == ["passed", "passed"]


def test_a_file_cannot_grow_beyond_its_limit(isolation):
    outcome = run("open('big', 'wb').write(bytes(2**22))", isolation, QUICK)

    assert (outcome.verdict, outcome.detail) == ("failed", "OSError: [Errno 27] File too large")


def test_all_files_together_are_bounded(namespaces):
    program = "for i in range(1000): open(str(i), 'wb').write(bytes(2**20))"

    outcome = run(program, namespaces, SandboxLimits(scratch_bytes=2**23, wall_s=30.0))

    assert outcome.detail == "OSError: [Errno 28] No space left on device"


def test_the_network_cannot_be_reached(namespaces):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        program = f"import socket\nsocket.create_connection({server.getsockname()!r})"

        outcome = run(program, namespaces)

    assert (outcome.verdict, outcome.detail) == (
        "failed",
        "OSError: [Errno 101] Network is unreachable",
    )


def test_the_environment_holds_no_secrets(isolation, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    program = """
        import os
        kept = {'PATH', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}
        assert set(os.environ) == kept, sorted(os.environ)
        """
    assert run(program, isolation).detail == ""


def test_other_processes_and_the_files_of_users_cannot_be_seen(namespaces, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("hf_secret")
    program = f"""
        import os
        for path in ({str(secret)!r}, '/proc/{os.getpid()}/environ', '/proc/1', '/etc/passwd'):
            assert not os.path.exists(path), path
        assert os.getpid() == 1
        """
    assert run(program, namespaces).detail == ""


@pytest.mark.parametrize(
    "attempt",
    [
        "libc.mount(b'tmpfs', b'/sandbox', b'tmpfs', 0, None)",
        "libc.mount(None, b'/usr', None, 0x1020, None)",
        "libc.sethostname(b'mine', 4)",
        "libc.setuid(0)",
    ],
)
def test_a_program_has_no_rights(namespaces, attempt):
    program = f"import ctypes\nlibc = ctypes.CDLL(None)\nassert {attempt} == -1"

    assert run(program, namespaces).detail == ""


def test_no_file_of_the_parent_is_open(isolation):
    program = """
        import os
        opened = []
        for number in range(3, 64):
            try:
                os.fstat(number)
            except OSError:
                continue
            opened.append(number)
        assert len(opened) == 1, opened  # the report
        assert {os.fstat(number).st_rdev for number in range(3)} == {os.stat('/dev/null').st_rdev}
        """
    assert run(program, isolation).detail == ""


@pytest.mark.parametrize("size", [1000, 2**20])
def test_a_report_cannot_be_forged_by_writing_to_every_file(isolation, size):
    program = f"""
        import os
        for number in range(3, 64):
            try:
                os.write(number, b'{{"passed": true}}' * {size})
            except OSError:
                pass
        os._exit(0)
        """
    assert run(program, isolation).verdict == "failed"


def test_many_run_side_by_side(isolation):
    programs = ["pass", "assert False"] * 4

    with ThreadPoolExecutor(4) as pool:
        verdicts = [o.verdict for o in pool.map(lambda p: run(p, isolation), programs)]

    assert verdicts == ["passed", "failed"] * 4


def test_everything_ends_with_a_caller_that_is_killed(isolation):
    script = f"""
        from student_trainer.tasks.sandbox.limits import SandboxLimits
        from student_trainer.tasks.sandbox.runner import run_sandboxed
        limits = SandboxLimits(wall_s=1000, cpu_s=1000)
        print("started", flush=True)
        run_sandboxed("while True: pass", limits=limits, isolation={isolation!r})
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "started\n"
        supervisor = first_child(caller.pid)
        program = first_child(supervisor)
        caller.kill()

    assert wait_for_end(supervisor)
    assert wait_for_end(program)


def first_child(pid: int) -> int:
    deadline = time.monotonic() + MARGIN_S
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = file.read().split()
        if children:
            return int(children[0])
    raise AssertionError(f"{pid} has no child")


def test_what_cannot_be_set_up_is_an_error_and_not_a_failed_program(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(SandboxError, match="the sandbox broke"):
        run("pass", "limits")


def test_weaker_isolation_is_refused_unless_accepted(namespaces_forbidden):
    assert namespaces_forbidden(accept_weaker=True) == "limits"
    assert "--accept_weaker_isolation" in namespaces_forbidden(accept_weaker=False)


@pytest.fixture
def namespaces_forbidden():
    """Asks for an isolation in a process whose kernel counts its user's namespaces as used up."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from student_trainer.tasks.sandbox import system_calls
        from student_trainer.tasks.sandbox.isolation import SandboxError
        from student_trainer.tasks.sandbox.runner import find_isolation
        system_calls.unshare(system_calls.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text(sys.argv[2])
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        try:
            print(find_isolation(accept_weaker=sys.argv[1] == "True"), end="")
        except SandboxError as error:
            print(error, end="")
        """)

    def find(*, accept_weaker: bool) -> str:
        if not has_namespaces():
            pytest.skip("without user namespaces there is no forbidding them")
        own = os.geteuid()
        command = [sys.executable, "-c", program, str(accept_weaker), f"{own} {own} 1\n"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return find
