"""What a run's configuration allows, and what follows from what is left out."""

import dataclasses
import re

import pytest

from student_trainer.config import Config, DataConfig, DistillConfig, ModelConfig, TrainConfig
from student_trainer.losses import LossConfig

DATA = DataConfig(train_path="data")
TRAIN = TrainConfig(output_dir="out")


def distill(**fields) -> DistillConfig:
    return DistillConfig(teacher_address="127.0.0.1:1", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_path": ""}, "data.train_path must be given, got ''"),
        ({"text_keys": []}, "data.text_keys must be one or two keys, got []"),
        ({"text_keys": ["a", "b", "c"]}, "data.text_keys must be one or two keys"),
        ({"max_seq_len": 8}, "data.min_chunk_tokens must be >= 1 and below data.max_seq_len (8)"),
        ({"min_chunk_tokens": 0}, "data.min_chunk_tokens must be >= 1"),
        ({"prompt_keys": ["p"]}, "data.answer_keys is []; give both or neither"),
        ({"num_workers": -1}, "data.num_workers must be >= 0, got -1"),
        ({"shuffle_buffer_size": 0}, "data.shuffle_buffer_size must be >= 1, got 0"),
    ],
)
def test_data_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**{"train_path": "data", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_dir": ""}, "train.output_dir must be given, got ''"),
        ({"micro_batch_size": 0}, "train.micro_batch_size must be >= 1, got 0"),
        ({"global_batch_size": 0}, "train.global_batch_size must be >= 1, got 0"),
        ({"max_steps": 0}, "train.max_steps must be >= 1, got 0"),
        ({"log_every_n_steps": 0}, "train.log_every_n_steps must be >= 1, got 0"),
        ({"num_train_epochs": 0.0}, "train.num_train_epochs must be > 0, got 0.0"),
        ({"lr": 0.0}, "train.lr must be > 0, got 0.0"),
        ({"lr": 0.1, "lr_min": 0.2}, "train.lr_min must be in [0, lr = 0.1], got 0.2"),
        ({"lr_warmup_ratio": 1.0}, "train.lr_warmup_ratio must be in [0, 1), got 1.0"),
        ({"weight_decay": -1.0}, "train.weight_decay must be >= 0, got -1.0"),
        ({"max_grad_norm": -1.0}, "train.max_grad_norm must be >= 0, got -1.0"),
        ({"save_steps": -1}, "train.save_steps must be >= 0, got -1"),
        ({"t_min": 0.0}, "train.t_min, train.t_max must be 0 < t_min < t_max <= 1"),
        ({"t_min": 0.9, "t_max": 0.5}, "0 < t_min < t_max <= 1, got (0.9, 0.5)"),
        (
            {"ckpt_manager": "none", "save_steps": 5},
            "train.save_steps must be unset with train.ckpt_manager=none, got 5",
        ),
        (
            {"ckpt_manager": "none", "load_checkpoint_path": "step-5"},
            "train.load_checkpoint_path must be unset with train.ckpt_manager=none",
        ),
    ],
)
def test_training_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**{"output_dir": "out", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation_alpha": 1.5}, "distill.distillation_alpha must be in [0, 1], got 1.5"),
        ({"distillation_alpha": -0.1}, "distill.distillation_alpha must be in [0, 1]"),
        ({"distillation_alpha": float("nan")}, "distill.distillation_alpha must be in [0, 1]"),
        ({"temperature": 0.0}, "distill.temperature must be > 0 and finite, got 0.0"),
        ({"temperature": -1.0}, "distill.temperature must be > 0 and finite, got -1.0"),
        ({"temperature": float("inf")}, "distill.temperature must be > 0 and finite, got inf"),
        ({"jsd_beta": 1.0}, "distill.jsd_beta must be in (0, 1), got 1.0"),
        ({"freeze_teacher": False}, "distill.freeze_teacher must be true, got False"),
        (
            {"use_stored_logits": True},
            "distill.stored_logits_path must be a folder or URL with",
        ),
        (
            {
                "use_stored_logits": True,
                "stored_logits_path": "store",
                "distillation_alpha": 0.0,
                "stored_logits_skip_corrupt": True,
            },
            "distill.use_stored_logits must be false with distill.distillation_alpha=0",
        ),
        ({"prompt_fraction": 1.0}, "distill.prompt_fraction must be in [0, 1), got 1.0"),
        ({"num_sampling_steps": 0}, "distill.num_sampling_steps must be >= 1, got 0"),
        ({"collect_every_n_steps": 0}, "distill.collect_every_n_steps must be >= 1, got 0"),
        ({"prefetch_window": 0}, "distill.prefetch_window must be >= 1, got 0"),
        ({"top_k": 0}, "distill.top_k must be >= 1, got 0"),
        ({"states_per_trajectory": -1}, "distill.states_per_trajectory must be >= 0, got -1"),
        ({"diffusion_temperature": -1.0}, "distill.diffusion_temperature must be >= 0, got -1.0"),
        ({"diffusion_top_k": -1}, "distill.diffusion_top_k must be >= 0, got -1"),
        ({"diffusion_alg_temp": -1.0}, "distill.diffusion_alg_temp must be >= 0, got -1.0"),
        ({"teacher_timeout_s": 0.0}, "distill.teacher_timeout_s must be > 0"),
        ({"call_timeout_s": 0.0}, "distill.call_timeout_s must be > 0"),
    ],
)
def test_distillation_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        distill(**fields)


def test_a_share_of_the_teacher_needs_one():
    with pytest.raises(ValueError, match=r"distillation_alpha is 0.5 but no teacher is given: set"):
        DistillConfig()
    assert not Config(data=DATA, train=TRAIN).uses_teacher
    assert Config(data=DATA, train=TRAIN, distill=distill()).uses_teacher
    assert Config(
        data=DATA, train=TRAIN, distill=DistillConfig(teacher_model_path="teacher")
    ).uses_teacher


@pytest.mark.parametrize(
    ("model", "said", "copies"),
    [
        (ModelConfig(), None, True),
        (ModelConfig(model_path="m"), None, False),
        (ModelConfig(config_path="c"), None, False),
        (ModelConfig(config_path="c"), True, True),
        (ModelConfig(), False, False),
    ],
)
def test_the_teachers_weights_are_copied_where_nothing_else_is_named(model, said, copies):
    config = Config(
        model=model, data=DATA, train=TRAIN, distill=distill(init_student_from_teacher=said)
    )
    assert config.init_student_from_teacher == copies


def test_the_losses_own_section_is_put_together():
    config = Config(
        data=DATA,
        train=dataclasses.replace(TRAIN, loss_weighting="path", loss_normalizer="sequence"),
        distill=distill(distillation_alpha=0.3, temperature=2.0, divergence="jsd", jsd_beta=0.25),
    )
    assert config.loss == LossConfig(
        alpha=0.3,
        temperature=2.0,
        divergence="jsd",
        jsd_beta=0.25,
        weighting="path",
        normalizer="sequence",
    )


def test_a_stream_needs_to_know_when_to_stop():
    stream = DataConfig(train_path="data", streaming=True)
    with pytest.raises(ValueError, match=r"train.max_steps must be given with data.streaming=true"):
        Config(data=stream, train=TRAIN)
    Config(data=stream, train=TrainConfig(output_dir="out", max_steps=3))
