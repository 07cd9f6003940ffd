import json
import subprocess
import sys

import pytest

from tests.bench import __main__ as command_line
from tests.bench import families, overhead, parity, store
from tests.bench.processes import ROOT, Child
from tests.bench.stored_records import HIDDEN_SIZE
from tests.bench.workload import Schedule, Workload

ENCODINGS = {"hidden", "logits", "top_k"}


@pytest.fixture(scope="module")
def quick_parity() -> parity.Result:
    return parity.run(quick=True)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_the_remote_loss_is_that_of_a_float64_teacher_in_process(quick_parity):
    assert set(quick_parity) == ENCODINGS
    for errors in quick_parity.values():
        assert 0 < errors["loss_rel_err"] < 1e-5
        assert 0 < errors["grad_rel_err"] < 1e-5


def test_json_on_standard_output_is_one_object_and_nothing_else():
    done = run_command("parity", "--quick", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {encoding: set(errors) for encoding, errors in result.items()} == {
        encoding: {"loss_rel_err", "grad_rel_err"} for encoding in ENCODINGS
    }


def test_an_unknown_bench_is_told_the_known_ones(capsys):
    assert command_line.main(["speed"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown bench 'speed'; known: all, approximate, families, latency, " in captured.err


def test_a_child_that_fails_is_an_error_with_its_last_words():
    words = r"(?s)instant_server ended with code 1:.*top_k"
    with Child("tests.bench.instant_server", {}) as child, pytest.raises(RuntimeError, match=words):
        child.first_line()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_overhead_of_a_tiny_run_has_every_figure_and_both_teachers_the_same_loss():
    workload = Workload(vocab_size=256, hidden_size=32, num_layers=2, seq_len=32, top_k=8)
    schedule = Schedule(num_warmup=1, max_steps=5, budget_s=10.0)
    # It raises where targets over the wire and in memory give different losses.
    result = overhead.measure(workload, schedule, num_memory_steps=2)
    json.dumps(result)
    for name in ("client_overhead", "trainer_rss_ratio", "in_process_rss_ratio"):
        assert 0.5 < result[name] < 10
    step, memory = result["step"], result["memory"]
    assert set(step["encodings"]) == {"hidden", "top_k"}
    assert step["num_steps"] == 5
    assert all(len(times) == 5 for times in step["step_s"].values())
    assert memory["num_teacher_parameters"] >= 8 * memory["num_student_parameters"]
    assert all(peak > memory["imports_mib"] for peak in memory["peak_rss_mib"].values())
    assert "client_overhead" in overhead.table(result)
    assert len(overhead.figure(result).axes) == 2


def test_every_family_conforms_to_its_reference():
    result = families.run(quick=True)
    assert result["families"]
    assert result["families_failing"] == 0
    assert 0 < result["max_logit_err"] <= 1e-5
    assert "0 of" in families.table(result)
    assert len(families.figure(result).axes) == 1


def test_the_store_is_measured_beside_pickles_and_parquet():
    result = store.measure(num_sequences=4, num_dense=2, repeats=1)
    json.dumps(result)
    assert result["top_k_64_bytes_per_position"] <= 280
    # Two bytes a hidden number, and the state of twice as many positions.
    assert 2 * HIDDEN_SIZE < result["hidden_bytes_per_position"] < 2 * HIDDEN_SIZE + 24
    assert result["bytes_vs_pickle"] < 1e-3
    kinds = result["kinds"]
    assert set(kinds) == {"top_k", "hidden", "logits", "pickled_logits", "parquet_top_k"}
    for kind in kinds.values():
        assert kind["positions_per_s"] > 0 and kind["copied_positions_per_s"] > 0
    assert all(name in store.table(result) for name in kinds)
    assert len(store.figure(result).axes) == 2
