"""What a step measured: the file, and what the terminal shows of it."""

import contextlib
import dataclasses
import json
import logging
import os
import sys

from student_trainer.metrics import MetricsLog, StepMetrics, read_metrics

METRICS = StepMetrics(
    step=1,
    loss=1.5,
    ce=1.0,
    kd=2.0,
    grad_norm=0.5,
    lr=1e-3,
    num_masked=10,
    num_tokens=300,
    step_s=0.5,
    teacher_wait_s=0.25,
    num_target_bytes=1000,
    num_retries=0,
    peak_rss_mib=100.0,
    elapsed_s=3.0,
    loss_by_time={"ce_t0.25": 0.5},
)


def write(path, steps, *, num_steps=4, first_step=0, every=1) -> None:
    with MetricsLog(
        path, num_steps=num_steps, first_step=first_step, log_every_n_steps=every
    ) as log:
        for step in steps:
            log.add(dataclasses.replace(METRICS, step=step))


def test_every_step_is_a_line(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    write(path, [1, 2, 3])
    found = read_metrics(path)
    assert [step["step"] for step in found] == [1, 2, 3]
    assert found[0] == METRICS.record()
    assert found[0]["tokens_per_s"] == 600.0
    assert found[0]["ce_t0.25"] == 0.5
    assert "loss_by_time" not in found[0]


def test_a_line_is_there_as_soon_as_its_step_is_done(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, num_steps=2, first_step=0, log_every_n_steps=1) as log:
        log.add(METRICS)
        assert len(read_metrics(path)) == 1


def test_a_new_run_begins_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    write(path, [1])
    assert [step["step"] for step in read_metrics(path)] == [1]


def test_a_start_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    for first_step in (0, 1):
        write(path, [], first_step=first_step)
        assert [step["step"] for step in read_metrics(path)] == [1, 2]


def test_a_run_that_goes_on_keeps_what_its_checkpoint_had(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    write(path, [3, 4], first_step=2)
    assert [step["step"] for step in read_metrics(path)] == [1, 2, 3, 4]


def test_a_run_that_goes_on_in_another_folder_has_its_own_steps(tmp_path):
    write(tmp_path / "metrics.jsonl", [3, 4], first_step=2)
    assert [step["step"] for step in read_metrics(tmp_path / "metrics.jsonl")] == [3, 4]


def test_the_log_has_a_line_every_so_many_steps_and_the_last(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        write(tmp_path / "metrics.jsonl", range(1, 8), num_steps=7, every=3)
    assert [line.partition(" eta_s")[0] for line in caplog.messages] == [
        "step 3/7",
        "step 6/7",
        "step 7/7",
    ]
    assert "loss=1.5000 ce=1.0000 kd=2.0000 tokens/s=600 teacher_wait_s=0.250" in caplog.text


def test_a_terminal_gets_a_bar_on_standard_error(tmp_path, monkeypatch, capsys):
    screen_fd, terminal_fd = os.openpty()
    with os.fdopen(terminal_fd, "w") as terminal, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", terminal)
        write(tmp_path / "metrics.jsonl", [1, 2])
    shown = read_to_end(screen_fd)
    assert "train" in shown and "2/4" in shown
    # Standard output belongs to the configuration; who keeps it in a file still sees the bar.
    assert capsys.readouterr().out == ""
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def read_to_end(screen_fd: int) -> str:
    """All that was shown on a terminal that is closed: it ends with an error on Linux."""
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(screen_fd, 4096):
            shown += data
    os.close(screen_fd)
    return shown.decode()


def test_no_time_gives_no_speed():
    assert dataclasses.replace(METRICS, step_s=0.0).tokens_per_s == 0.0


def test_the_file_is_plain_json(tmp_path):
    write(tmp_path / "metrics.jsonl", [1])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == 1.5
