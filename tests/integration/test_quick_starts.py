"""The two command lines of the original interface, with only the names of the programs changed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from masked_diffusion import checkpoints
from student_trainer.metrics import read_metrics
from student_trainer.store import StoreReader
from student_trainer.store.verify import verify
from tests import training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
    "train_diffusion_distill.py": ["-m", "student_trainer.train"],
    "precompute_teacher_logits.py": ["-m", "student_trainer.cli", "precompute"],
    "python": [sys.executable],
}
"""What stands for each program of the original."""

TRAIN = """
torchrun --nproc_per_node=2 train_diffusion_distill.py student_trainer/configs/live.yaml
--data.train_path={data} --data.text_keys=text --data.max_seq_len=64
--train.output_dir={output} --train.ckpt_manager=dcp --train.micro_batch_size=2
--train.global_batch_size=8 --train.lr=1e-4 --train.max_steps=2
--model.config_overrides='{{"num_hidden_layers": 2}}'
--distill.teacher_model_path={teacher} --distill.distillation_alpha=0.5
--distill.temperature=4.0 --distill.num_sampling_steps=8 --distill.collect_every_n_steps=4
--distill.diffusion_sampling_alg=p2 --distill.diffusion_temperature=0.7
--distill.diffusion_top_k=200 --distill.init_student_from_teacher=true
--distill.freeze_teacher=true
"""
STORED = " --distill.use_stored_logits=true --distill.stored_logits_path={stored}"
PRECOMPUTE = """
python precompute_teacher_logits.py --teacher_model_path {teacher} --teacher_config_path {teacher}
--tokenizer_path {teacher} --data_path {data} --output_path {stored} --num_sampling_steps 8
--collect_every_n_steps 4 --diffusion_alg p2 --diffusion_temperature 0.7 --diffusion_top_k 200
--batch_size 4 --max_seq_len 64 --max_examples 10 --device cpu
"""


@pytest.fixture
def places(tiny_checkpoint, tmp_path) -> dict[str, Path]:
    return {
        "teacher": tiny_checkpoint,
        "data": training.write_texts(tmp_path),
        "output": tmp_path / "output",
        "stored": tmp_path / "stored",
    }


def run(command: str, places: dict[str, Path]) -> None:
    words = shlex.split(command.format(**places))
    words = [word for name in words for word in PROGRAMS.get(name, [name])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def check_trained(output: Path) -> None:
    metrics = read_metrics(output / "metrics.jsonl")
    assert len(metrics) == 2 and all(step["kd"] > 0 for step in metrics)
    assert checkpoints.load_denoiser(str(output / "hf_ckpt")).info.num_parameters > 0


def test_live_from_a_local_teacher_alone(places):
    run(TRAIN, places)
    check_trained(places["output"])
    assert list(places["output"].glob("teacher_server_*.log"))


def test_offline_precompute_and_then_train_from_the_stored_targets(places):
    run(PRECOMPUTE, places)
    assert verify(places["stored"]) == []
    with StoreReader(places["stored"]) as reader:
        assert reader.finished and len(reader) == 10
    run(TRAIN + STORED, places)
    check_trained(places["output"])
    assert not list(places["output"].glob("teacher_server_*.log"))
