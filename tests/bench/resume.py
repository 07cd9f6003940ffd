"""How far a run that was killed and resumed is from one that nothing disturbed."""

import contextlib
import signal
import tempfile
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure
from safetensors.torch import load_file

from masked_diffusion import checkpoints
from student_trainer.metrics import read_metrics
from student_trainer.teacher_process import TeacherProcess
from tests import interrupted_runs, tiny_models, training

NUM_STEPS = 40
NUM_KILLS = 3
COMPARED = ("loss", "ce", "kd", "grad_norm", "lr", "num_masked", "num_tokens")


class Result(TypedDict):
    """Differences of every logged number and of every exported weight."""

    resume_max_abs_diff: float
    weights_max_abs_diff: float
    num_steps: int
    killed_after_steps: list[int]
    loss: list[float]
    resumed_loss: list[float]


def run(*, quick: bool) -> Result:
    """Trains twice with the same teacher; the second run is killed at random steps."""
    with tempfile.TemporaryDirectory() as name:
        return _measure(Path(name), num_kills=1 if quick else NUM_KILLS)


def _measure(folder: Path, *, num_kills: int) -> Result:
    tokenizer = tiny_models.train_tokenizer()
    config = tiny_models.qwen2_config(vocab_size=len(tokenizer))
    teacher = folder / "teacher"
    checkpoints.save_denoiser(checkpoints.new_denoiser(config, tokenizer, seed=0), teacher)
    data = training.write_texts(folder)
    killed = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            TeacherProcess(
                str(teacher),
                log_path=folder / "server.log",
                extra_arguments=["--deterministic", "--num-threads=1"],
            )
        )
        settings: dict[str, object] = {
            "model.config_overrides": {"num_hidden_layers": 1},
            "distill.teacher_address": server.address,
            "distill.teacher_model_path": teacher,
            "train.max_steps": NUM_STEPS,
            "train.save_steps": 3,
            "train.keep_last_checkpoints": 2,
            "train.load_checkpoint_path": "auto",
            "train.enable_full_determinism": True,
            "train.use_tensorboard": False,
        }
        interrupted_runs.finish(
            interrupted_runs.start(
                training.arguments(folder / "whole", data, settings), folder=folder / "logs"
            )
        )
        command = training.arguments(folder / "killed", data, settings)
        metrics = folder / "killed" / "metrics.jsonl"
        for seed in range(num_kills):
            done = interrupted_runs.num_lines(metrics)
            step = done + interrupted_runs.random_step((NUM_STEPS - done) // 2, seed=seed)
            killed.append(step)
            codes = interrupted_runs.interrupt(
                interrupted_runs.start(command, folder=folder / "logs"),
                metrics,
                after_step=step,
                number=signal.SIGKILL,
            )
            assert codes == [-signal.SIGKILL]
        interrupted_runs.finish(interrupted_runs.start(command, folder=folder / "logs"))
    whole, resumed = (read_metrics(folder / name / "metrics.jsonl") for name in ("whole", "killed"))
    weights, resumed_weights = (
        load_file(folder / name / "hf_ckpt" / "model.safetensors") for name in ("whole", "killed")
    )
    assert [step["step"] for step in resumed] == list(range(1, NUM_STEPS + 1))
    return {
        "resume_max_abs_diff": max(
            abs(one[key] - other[key])
            for one, other in zip(whole, resumed, strict=True)
            for key in COMPARED
        ),
        "weights_max_abs_diff": max(
            float((weights[key] - resumed_weights[key]).abs().max()) for key in weights
        ),
        "num_steps": NUM_STEPS,
        "killed_after_steps": killed,
        "loss": [step["loss"] for step in whole],
        "resumed_loss": [step["loss"] for step in resumed],
    }


def table(result: Result) -> str:
    """The result to read."""
    return "\n".join(
        [
            f"resume: {result['num_steps']} steps, SIGKILL once steps "
            f"{result['killed_after_steps']} were logged, against an undisturbed run",
            "",
            f"largest difference of a logged number {result['resume_max_abs_diff']:g} (aim 0)",
            f"largest difference of a weight        {result['weights_max_abs_diff']:g} (aim 0)",
        ]
    )


def figure(result: Result) -> Figure:
    """Both loss curves."""
    drawing = Figure(figsize=(6, 3), layout="constrained")
    axes = drawing.subplots()
    steps = range(1, result["num_steps"] + 1)
    axes.plot(steps, result["loss"], linewidth=3, alpha=0.5, label="undisturbed")
    axes.plot(steps, result["resumed_loss"], linewidth=1, label="killed and resumed")
    for step in result["killed_after_steps"]:
        axes.axvline(step, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    axes.set_title("A run that is killed goes on as if it had not been")
    axes.legend()
    return drawing
