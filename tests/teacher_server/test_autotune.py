"""What is chosen, where it is noted, and when it is used again."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masked_diffusion.families import Denoiser
from teacher_server import autotune
from teacher_server.arguments import parse_arguments
from teacher_server.config import EngineConfig

NOTHING = frozenset[str]()


def _noted(path: Path, denoiser: Denoiser, **chosen: object) -> None:
    facts = autotune._facts(denoiser, "r")
    path.write_text(json.dumps({**facts, "chosen": chosen, "trials": []}))


def _tuned(
    denoiser: Denoiser, path: Path, given: frozenset[str] = NOTHING, **config: object
) -> EngineConfig:
    options = parse_arguments(["--model=unused"])
    values = {"max_batch_tokens": 777, "autotune_file": str(path), "given": sorted(given)}
    vars(options).update(values | config)
    tuned, _ = autotune.tuned(denoiser, options, revision="r")
    return tuned


def test_what_is_measured_is_chosen_from_what_was_tried_and_given_options_are_left_alone(
    tiny_denoiser: Denoiser,
) -> None:
    before = torch.get_num_threads()
    given = frozenset({"max_head_elements", "num_threads"})
    chosen, arms = autotune.measure(tiny_denoiser, EngineConfig(), seconds=2, given=given)
    assert set(chosen) == {"pad_rows", "max_batch_tokens"}
    for option, value in chosen.items():
        assert value in [arm.value for arm in arms if arm.option == option and arm.us_per_token]
    assert torch.get_num_threads() == before
    assert autotune.table(arms, chosen).count("<- chosen") == 2


def test_compiling_is_tried_where_there_is_time_and_a_compiler(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(config: EngineConfig, seconds: float) -> tuple[int | bool, ...]:
        return autotune._candidates(tiny_denoiser, config, seconds=seconds)["compile"]

    # A name that is certainly there: nothing is compiled here.
    monkeypatch.setenv("CXX", sys.executable)
    assert tried(EngineConfig(), 120) == (False, True)
    assert tried(EngineConfig(), 119) == ()
    assert tried(EngineConfig(deterministic=True), 120) == ()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert tried(EngineConfig(), 120) == ()


def test_a_file_of_this_model_is_used_and_options_on_the_command_line_win(
    tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.json"
    _noted(path, tiny_denoiser, max_batch_tokens=2048, pad_rows=True)
    assert _tuned(tiny_denoiser, path) == EngineConfig(max_batch_tokens=2048, pad_rows=True)
    given = frozenset({"max_batch_tokens"})
    assert _tuned(tiny_denoiser, path, given).max_batch_tokens == 777


@pytest.mark.parametrize("fact", ["revision", "device", "torch"])
def test_a_file_of_something_else_is_not_used_with_a_warning(
    tiny_denoiser: Denoiser, tmp_path: Path, fact: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tuned.json"
    _noted(path, tiny_denoiser, max_batch_tokens=2048)
    path.write_text(json.dumps(json.loads(path.read_text()) | {fact: "other"}))
    with caplog.at_level(logging.WARNING):
        assert _tuned(tiny_denoiser, path).max_batch_tokens == 777
    assert f"its {fact} is other, here it is" in caplog.text


def test_a_file_that_is_missing_or_broken_is_refused(
    tiny_denoiser: Denoiser, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.json"
    with pytest.raises(ValueError, match="does not exist; give --autotune to write it"):
        _tuned(tiny_denoiser, path)
    for text in ("{", "[]", '{"revision": "r"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not one that --autotune wrote; delete it"):
            _tuned(tiny_denoiser, path)


def test_options_are_known_to_be_given_even_with_their_default_value() -> None:
    options = parse_arguments(["--model=x", "--max-batch-tok=8192", "--num-threads", "0"])
    assert options.given == ["max_batch_tokens", "model", "num_threads"]


def test_a_server_measures_writes_the_file_and_then_listens(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.json"
    command = [sys.executable, "-m", "teacher_server.server", f"--model={tiny_checkpoint}"]
    command += ["--listen=127.0.0.1:0", "--exit-with-stdin", "--num-threads=1"]
    command += ["--autotune", f"--autotune-file={path}", "--autotune-seconds=2"]
    # Standard input is at its end: it stops as soon as it listens.
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    noted = json.loads(path.read_text())
    assert set(noted["chosen"]) == {"pad_rows", "max_batch_tokens", "max_head_elements"}
    assert noted["torch"] == torch.__version__
    assert "us/token" in done.stderr and "autotuned pad_rows=" in done.stderr
