"""The training runs: a student of the served teacher, and a control that never asks it."""

from pathlib import Path

from transformers import BertConfig, PreTrainedTokenizerFast

from examples.antibody.plan import Plan
from student_trainer import demo_runs
from student_trainer.demo_runs import Run


def write_student_config(
    folder: Path, teacher: BertConfig, tokenizer: PreTrainedTokenizerFast, plan: Plan
) -> None:
    """Writes the folder that `model.config_path` names: a smaller BERT, and the tokenizer."""
    config = BertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        pad_token_id=teacher.pad_token_id,
        hidden_size=plan.student_width,
        intermediate_size=4 * plan.student_width,
        num_hidden_layers=plan.student_layers,
        num_attention_heads=plan.student_heads,
        # Distillation has a regulariser already, and the control is to differ in nothing else.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(
    folder: Path,
    *,
    config_path: Path,
    train_path: Path,
    plan: Plan,
    teacher_address: str | None = None,
) -> Run:
    """Runs the trainer under torchrun; with an address it learns from the teacher alone."""
    distill: dict[str, object] = {"distillation_alpha": 0.0}
    if teacher_address is not None:
        distill = {
            "distillation_alpha": 1.0,
            "teacher_address": teacher_address,
            "init_student_from_teacher": False,
        }
    settings: dict[str, dict[str, object]] = {
        "model": {"config_path": str(config_path)},
        "data": {"train_path": str(train_path), "max_seq_len": plan.max_length + 2},
        "train": {
            "output_dir": str(folder),
            "micro_batch_size": plan.micro_batch_size,
            "max_steps": plan.train_steps,
            "lr": plan.lr,
            "lr_warmup_ratio": 0.05,
            "seed": plan.seed,
            "log_every_n_steps": max(1, plan.train_steps // 8),
        },
        "distill": distill,
    }
    return demo_runs.train(folder, settings, num_ranks=plan.num_ranks, depends_on=[str(plan)])
