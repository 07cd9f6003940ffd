"""The two examples of the library, as users start them: processes against a teacher process."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from examples import bare_loop, hf_trainer
from masked_diffusion import checkpoints
from student_trainer import precompute
from student_trainer.teacher_process import TeacherProcess
from tests import tiny_models, training
from tests.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STEPS = 4
SEED = 11
BARE, HF = "examples/bare_loop.py", "examples/hf_trainer.py"
# What a step of 8 sequences in two micro-batches is called in each.
SIZES: Mapping[str, Sequence[str]] = {
    BARE: ("--lr=3e-3", "--batch_size=8", "--gradient_accumulation_steps=2"),
    HF: (
        *("--learning_rate=3e-3", "--lr_scheduler_type=constant", "--adam_beta2=0.95"),
        *("--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"),
        *("--logging_steps=1", "--dataloader_pin_memory=false"),
    ),
}
# The same sums in float32 and in the same order; the losses are read back from decimals.
RELATIVE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A served teacher, a student, texts, and what our own trainer makes of them."""

    folder: Path
    address: str
    steps: list[dict[str, float]]
    """Metrics of the trainer's steps."""

    def command(self, example: str, name: str, *more: str) -> list[str]:
        """The command line of the same run with an example."""
        output = "--output" if example == BARE else "--output_dir"
        return [
            example,
            f"--student={self.folder / 'student'}",
            f"--data={self.folder / 'train.jsonl'}",
            f"--teacher_address={self.address}",
            f"{output}={self.folder / name}",
            *("--max_seq_len=64", "--min_chunk_tokens=8"),
            *(f"--max_steps={NUM_STEPS}", f"--seed={SEED}"),
            *SIZES[example],
            *more,
        ]

    def check(self, name: str, losses: Sequence[float]) -> None:
        """The trainer's losses, falling, and its student."""
        assert losses == pytest.approx([step["loss"] for step in self.steps], rel=RELATIVE)
        assert losses[-1] < losses[0]
        ours = checkpoints.load_denoiser(str(self.folder / "own" / "hf_ckpt"))
        theirs = checkpoints.load_denoiser(str(self.folder / name))
        assert theirs.info.tokenizer_fingerprint == ours.info.tokenizer_fingerprint
        # AdamW divides by gradients near 0, whose rounding moves a weight by parts of lr = 3e-3.
        for (key, left), right in zip(theirs.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(left, right, atol=1e-4, rtol=0, msg=key)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("library")
    tokenizer = tiny_models.train_tokenizer()
    for name, num_layers in (("teacher", 2), ("student", 1)):
        config = tiny_models.qwen2_config(vocab_size=len(tokenizer) + 20, num_layers=num_layers)
        denoiser = checkpoints.new_denoiser(config, tokenizer, seed=num_layers)
        checkpoints.save_denoiser(denoiser, folder / name)
    data = training.write_texts(folder)
    arguments = ["--deterministic"]
    with TeacherProcess(
        str(folder / "teacher"), log_path=folder / "teacher.log", extra_arguments=arguments
    ) as teacher:
        settings: dict[str, object] = {
            "distill.teacher_address": teacher.address,
            "distill.distillation_alpha": 0.5,
            "model.model_path": folder / "student",
            "train.global_batch_size": 8,
            "train.max_steps": NUM_STEPS,
            "train.seed": SEED,
            "train.lr_warmup_ratio": 0.0,
            "train.lr_decay_style": "constant",
            "train.weight_decay": 0.0,
            "train.ckpt_manager": "none",
        }
        own_run = training.arguments(folder / "own", data, settings)
        steps = training.run(own_run)
        (folder / "run.yaml").write_text("", encoding="utf-8")
        stored = [f"--output_path={folder / 'store'}", f"--run_config={folder / 'run.yaml'}"]
        assert precompute.main([*stored, *own_run]) == 0
        yield Bench(folder=folder, address=teacher.address, steps=steps)


def run(command: Sequence[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, *command],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def logged_losses(folder: Path, key: str = "loss") -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry[key] for entry in state["log_history"] if key in entry]


def test_the_bare_loop_is_the_trainers_run(bench: Bench) -> None:
    finished = run(bench.command(BARE, "bare"))
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line) for line in finished.stdout.splitlines()]
    for name in ("ce", "kd"):
        ours = [step[name] for step in bench.steps]
        assert [step[name] for step in steps] == pytest.approx(ours, rel=RELATIVE)
    bench.check("bare", [step["loss"] for step in steps])


@pytest.mark.parametrize(("example", "main"), [(BARE, bare_loop.main), (HF, hf_trainer.main)])
def test_stored_targets_give_the_same_run(
    bench: Bench,
    example: str,
    main: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"stored_{Path(example).stem}"
    command = bench.command(example, name, f"--store={bench.folder / 'store'}")
    command.remove(f"--teacher_address={bench.address}")
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    if example == HF:
        bench.check(name, logged_losses(bench.folder / name))
    else:
        lines = capsys.readouterr().out.splitlines()
        bench.check(name, [json.loads(line)["loss"] for line in lines if '"loss"' in line])


def test_a_state_that_the_store_does_not_hold_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (f"--store={bench.folder / 'store'}", f"--seed={SEED + 1}")
    command = bench.command(BARE, "missing", *more)
    command.remove(f"--teacher_address={bench.address}")
    monkeypatch.setattr(sys, "argv", command)
    assert bare_loop.main() == 1
    assert "does not hold the state of sequence" in capsys.readouterr().err.splitlines()[-1]


def test_the_hf_trainer_is_the_trainers_run_in_one_go_and_resumed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = run(bench.command(HF, "hf", "--dataloader_num_workers=1", "--save_steps=2"))
    assert finished.returncode == 0, finished.stderr
    bench.check("hf", logged_losses(bench.folder / "hf"))
    # The second half again, from weights, optimizer and place in the data.
    more = (
        f"--resume_from_checkpoint={bench.folder / 'hf' / 'checkpoint-2'}",
        *(f"--eval_data={bench.folder / 'train.jsonl'}", "--eval_strategy=epoch"),
    )
    monkeypatch.setattr(sys, "argv", bench.command(HF, "resumed", *more))
    assert hf_trainer.main() == 0
    bench.check("resumed", logged_losses(bench.folder / "resumed"))
    (evaluation,) = logged_losses(bench.folder / "resumed", "eval_loss")
    assert 0 < evaluation < bench.steps[0]["loss"]


def test_the_hf_trainer_is_the_trainers_run_on_two_ranks(bench: Bench) -> None:
    command = bench.command(HF, "ranks", "--per_device_train_batch_size=2", "--use_cpu=true")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finished = run(command, *launcher)
    assert finished.returncode == 0, finished.stderr
    bench.check("ranks", logged_losses(bench.folder / "ranks"))


def test_every_epoch_of_the_hf_trainer_has_noise_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (bench.folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (bench.folder / "few.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    data = f"--data={bench.folder / 'few.jsonl'}"
    monkeypatch.setattr(
        sys, "argv", bench.command(HF, "epochs", data, "--max_steps=-1", "--num_train_epochs=2")
    )
    assert hf_trainer.main() == 0
    losses = logged_losses(bench.folder / "epochs")
    assert len(losses) >= 2
    more = (data, f"--max_steps={len(losses)}")
    monkeypatch.setattr(sys, "argv", bench.command(HF, "steps", *more))
    assert hf_trainer.main() == 0
    assert losses == pytest.approx(logged_losses(bench.folder / "steps"), rel=RELATIVE)


def test_micro_batches_that_do_not_make_a_batch_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = bench.command(BARE, "uneven", "--gradient_accumulation_steps=3")
    monkeypatch.setattr(sys, "argv", command)
    assert bare_loop.main() == 1
    message = "--batch_size must be a multiple of --gradient_accumulation_steps=3, got 8"
    assert message in capsys.readouterr().err


def test_ranks_that_do_not_meet_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", bench.command(HF, "alone"))
    assert hf_trainer.main() == 1
    assert "torchrun started 2 ranks, Trainer sees 1" in capsys.readouterr().err


def test_a_dead_teacher_is_one_clear_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as held:
        # Bound and not listening: nobody else gets this port, and nobody answers there.
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        more = (f"--teacher_address={address}", "--timeout_s=0.5")
        finished = run(bench.command(BARE, "dead", *more))
        monkeypatch.setattr(sys, "argv", bench.command(HF, "dead", *more))
        assert (finished.returncode, hf_trainer.main()) == (1, 1)
    for said in (finished.stderr, capsys.readouterr().err):
        assert "Traceback" not in said
        assert said.count(f"no progress with {address}") == 1
        assert "check the address and that teacher-server runs there" in said
    assert not (bench.folder / "dead").exists()


@pytest.mark.parametrize(("example", "main"), [(BARE, bare_loop.main), (HF, hf_trainer.main)])
def test_a_teacher_that_dies_in_the_middle_ends_the_run(
    bench: Bench,
    example: str,
    main: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Enough for the head, 41 kB, and a step of two micro-batches or so; nothing after that.
    budgets = [120_000, *[1] * 10_000]
    with TcpProxy(bench.address, budgets=budgets) as proxy:
        more = (f"--teacher_address={proxy.address}", "--timeout_s=0.5", "--max_steps=1000")
        monkeypatch.setattr(sys, "argv", bench.command(example, "cut", *more))
        assert main() == 1
    captured = capsys.readouterr()
    assert "loss" in captured.out
    assert f"no progress with {proxy.address}" in captured.err.splitlines()[-1]
