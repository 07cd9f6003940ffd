import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from masked_diffusion.families import Denoiser
from protos import teacher_pb2 as pb
from teacher_server import server as server_module
from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.server import TeacherServer
from tests import servers
from tests.teacher_server import calls
from tests.teacher_server.calls import collect, connect, refusal, wait_until
from tests.teacher_server.denoisers import ControlledDenoiser

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

READY = "teacher-server listening on "
# Importing torch and transformers takes some seconds, more on a busy machine.
START_TIMEOUT_S = 90.0


class _Process:
    """A real `teacher-server`, with its standard error in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._errors = folder / "stderr"
        with self._errors.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "teacher_server.server", "--num-threads=1", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def ready_line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def wait(self) -> int:
        return self.popen.wait(START_TIMEOUT_S)

    @property
    def errors(self) -> list[str]:
        """Lines of standard error, without the progress bars of model loading."""
        lines = self._errors.read_text().replace("\r", "\n").splitlines()
        return [line for line in lines if line and "Loading weights" not in line]

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="module")
def processes(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, _Process]]:
    """The processes of this file, started together since each needs seconds to import torch."""
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def start(name: str, *arguments: str) -> _Process:
            folder = tmp_path_factory.mktemp(name)
            process = _Process(folder, f"--model={tiny_checkpoint}", *arguments)
            stack.callback(process.close)
            return process

        yield {
            "serving": start(
                "serving", "--listen=127.0.0.1:0", "--status-interval-s=0.1", "--exit-with-stdin"
            ),
            "port-taken": start("port-taken", f"--listen=127.0.0.1:{taken.getsockname()[1]}"),
        }


def test_a_port_in_use_is_one_clear_line_and_code_1(processes: dict[str, _Process]) -> None:
    process = processes["port-taken"]
    assert process.wait() == 1
    # The C core of gRPC has its say first, and so has the log.
    (line,) = [line for line in process.errors if line.startswith("teacher-server: ")]
    assert "127.0.0.1:" in line
    assert "is taken or cannot be bound; choose another port or stop what listens there" in line
    assert process.ready_line() == ""
    assert not any("Traceback" in line for line in process.errors)


def test_a_terminated_server_finishes_its_streams_refuses_others_and_exits_with_0(
    processes: dict[str, _Process], tiny_denoiser: Denoiser
) -> None:
    process = processes["serving"]
    line = process.ready_line()
    assert line.startswith(READY + "127.0.0.1:")
    address = line.removeprefix(READY)
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(process.popen.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    # More bytes than fit between server and client: it cannot be done before it is read.
    request = calls.trajectory_request(
        [
            calls.make_state(tiny_denoiser.info, length=250, num_masked=249, seed=seed)
            for seed in range(2)
        ],
        sampler=pb.SamplerSpec(algorithm=pb.ALGORITHM_P2, num_steps=100),
        capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1),
        targets=pb.TargetSpec(encoding=pb.ENCODING_LOGITS),
        client_id="long",
    )
    small = calls.score_request(
        [calls.make_state(tiny_denoiser.info, length=9, num_masked=4)], client_id="small"
    )
    with connect(address) as stub:
        assert len(collect(stub.ScoreStates(small)).targets) == 1
        gone = stub.SampleTrajectories(request)
        next(gone)
        wait_until(lambda: stub.GetLoad(pb.GetLoadRequest()).num_payload_bytes > 5_000_000)
        gone.cancel()
        call = stub.SampleTrajectories(request)
        first = next(call)
        # Its own memory, though a child inherits the peak of the process that started it.
        peak_bytes = stub.GetLoad(pb.GetLoadRequest()).peak_rss_bytes
        rss_bytes = psutil.Process(process.popen.pid).memory_info().rss
        assert rss_bytes / 2 < peak_bytes < 3 * rss_bytes
        (engine,) = psutil.Process(process.popen.pid).children()
        assert peak_bytes > rss_bytes + engine.memory_info().rss / 2
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: stub.GetLoad(pb.GetLoadRequest()).draining)
        told = refusal(lambda: list(stub.ScoreStates(small)))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        answers = collect([first, *call])
    assert len(answers.targets) == 200
    assert len(answers.trajectories) == 2
    # Standard input is still open: a thread that waits for its end must not hold the exit up.
    assert process.wait() == 0
    requests = [line for line in process.errors if " request id=" in line]
    assert len(requests) == 4
    assert "client=small kind=score status=ok rows=1 tokens=9 forwards=1" in requests[0]
    assert "client=long kind=trajectory status=cancelled rows=2" in requests[1]
    assert "client=small kind=score status=draining rows=1" in requests[2]
    assert "client=long kind=trajectory status=ok rows=2 tokens=500 forwards=200" in requests[3]
    statuses = [line for line in process.errors if " status rows_live=" in line]
    assert statuses
    for name in ("rows_waiting", "queue_tokens", "batch_fill", "tokens_per_s", "backlog_s"):
        assert f" {name}=" in statuses[0]
    assert "stopped drained=True" in process.errors[-1]
    # A caller that left is no error, whatever gRPC thinks of it.
    assert not any("Traceback" in line for line in process.errors)


# The same program within this process: what it refuses before it serves.


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str, in_process: bool = True) -> str:
    """Runs it; expects code 1 and gives the one line of standard error."""
    capsys.readouterr()
    if in_process:
        # The same loading, without the seconds that a process takes to start.
        arguments = (*arguments, "--engine-in-process")
    assert server_module.main(arguments) == server_module.EXIT_FAILED
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in lines if line and "Loading weights" not in line]
    assert line.startswith("teacher-server: ")
    return line


def test_an_engine_process_that_cannot_load_says_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [_fails(capsys, "--model=./gone", in_process=alone) for alone in (True, False)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("model", ["no/such/folder/here", "./gone"])
def test_an_unknown_model_is_one_clear_line_that_names_it(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _fails(capsys, f"--model={model}")
    assert f"no such folder: {model}" in line
    assert "give the path of a folder saved in Hugging Face format" in line


def test_a_checkpoint_without_a_mask_id_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "maskless"
    shutil.copytree(tiny_checkpoint, folder)
    for path in folder.glob("*token*"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["mask_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    line = _fails(capsys, f"--model={folder}")
    assert f"{folder} has no mask token" in line
    assert "pass mask_token_id" in line


def test_a_mask_id_outside_the_vocabulary_is_refused(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _fails(capsys, f"--model={tiny_checkpoint}", "--mask-token-id=99999")
    assert "got 99999" in line


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta-physical"])
def test_a_device_that_cannot_be_used_is_named(
    device: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _fails(capsys, f"--model={tiny_checkpoint}", f"--device={device}")
    assert f"--device {device} cannot be used here" in line


def test_a_host_that_does_not_exist_is_named(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = "no-such-host.invalid:50051"
    line = _fails(capsys, f"--model={tiny_checkpoint}", f"--listen={listen}")
    assert listen in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--listen=nowhere", "listen must be HOST:PORT, got 'nowhere'"),
        ("--listen=127.0.0.1:65536", "listen must be HOST:PORT"),
        ("--max-batch-tokens=0", "max_batch_tokens must be positive and finite, got 0"),
        ("--max-batch-tokens=many", "invalid int value: 'many'"),
        ("--max-padding-fraction=1", "max_padding_fraction must be in [0, 1), got 1.0"),
        ("--max-padding-fraction=nan", "max_padding_fraction must be in [0, 1), got nan"),
        ("--drain-timeout-s=-1", "drain_timeout_s must be finite and not negative, got -1.0"),
        ("--drain-timeout-s=inf", "drain_timeout_s must be finite and not negative, got inf"),
        ("--health-interval-s=nan", "health_interval_s must be positive and finite, got nan"),
        ("--max-sequences=-3", "max_sequences must be positive and finite, got -3"),
        ("--num-threads=-1", "--num-threads must not be negative, got -1"),
        ("--dtype=float8", "invalid choice: 'float8'"),
        ("--max-batch-tokes=3", "unrecognized arguments: --max-batch-tokes=3"),
    ],
)
def test_a_bad_option_value_is_named_and_is_code_2(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = server_module.main(["--model=unused", option])
    except SystemExit as exit_:
        code = exit_.code
    assert code == server_module.EXIT_MISUSED
    assert message in capsys.readouterr().err


def test_a_model_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        server_module.main([])
    assert raised.value.code == server_module.EXIT_MISUSED
    assert "--model" in capsys.readouterr().err


def test_help_tells_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        server_module.main(["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--max-batch-tokens" in text
    assert "(default: 8192)" in text
    assert "Tokens of one denoising step, padding included." in text


# The server as an object.


def _make(denoiser: Denoiser, listen: str = "127.0.0.1:0") -> TeacherServer:
    return TeacherServer(
        denoiser,
        config=ServerConfig(listen=listen),
        engine_config=EngineConfig(),
        limits=LimitsConfig(),
    )


def test_a_stop_before_it_serves_is_not_lost(tiny_denoiser: Denoiser) -> None:
    server = _make(tiny_denoiser)
    server.request_stop()
    assert asyncio.run(asyncio.wait_for(server.serve(), 30))


def test_a_server_ends_where_standard_input_was_closed_before_it_served(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        arguments = [f"--model={tiny_checkpoint}", "--listen=127.0.0.1:0", "--exit-with-stdin"]
        arguments.append("--engine-in-process")
        assert server_module.main(arguments) == 0
    assert capsys.readouterr().out.startswith(READY + "127.0.0.1:")


def test_a_stop_after_it_served_does_no_harm(tiny_denoiser: Denoiser) -> None:
    with servers.serve(tiny_denoiser) as running:
        pass
    running.server.request_stop()
    assert running.ended_as_asked


def test_nothing_is_left_of_a_server_that_could_not_start(tiny_denoiser: Denoiser) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = _make(tiny_denoiser, listen=f"127.0.0.1:{port}")
        with pytest.raises(OSError, match="is taken or cannot be bound"):
            asyncio.run(server.serve())
    broken = ControlledDenoiser(tiny_denoiser)
    broken.is_broken = True
    with pytest.raises(RuntimeError, match="out of order"):
        asyncio.run(_make(broken, listen=f"127.0.0.1:{port}").serve())
    assert not any(thread.name == "engine" for thread in threading.enumerate())
    with servers.serve(tiny_denoiser, listen=f"127.0.0.1:{port}"):
        pass


def test_two_servers_never_share_a_port_in_silence(tiny_denoiser: Denoiser) -> None:
    with servers.serve(tiny_denoiser) as running:
        with (
            pytest.raises(OSError, match=running.address),
            servers.serve(tiny_denoiser, listen=running.address),
        ):
            pass
        with connect(running.address) as stub:
            assert stub.DescribeTeacher(pb.DescribeTeacherRequest()).family == "qwen2"


def test_a_stopped_server_leaves_its_port_free(tiny_denoiser: Denoiser) -> None:
    with servers.serve(tiny_denoiser) as running:
        address = running.address
    with servers.serve(tiny_denoiser, listen=address) as again:
        assert again.address == address
