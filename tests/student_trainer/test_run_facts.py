"""What must be equal at a resume is refused by name; everything else may change and is told."""

import pytest

from student_trainer import config_file
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.run_facts import DIGEST, config_changes, config_facts, differences


def config(*, train=None, distill=None, data=None) -> Config:
    return Config(
        data=DataConfig(**{"train_path": "data", **(data or {})}),
        train=TrainConfig(**{"output_dir": "out", **(train or {})}),
        distill=DistillConfig(**{"teacher_address": "host:1", **(distill or {})}),
    )


def changed(before: Config, after: Config) -> list[str]:
    return differences(config_facts(before), config_facts(after))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "seed", 7),
        ("train", "loss_weighting", "none"),
        ("train", "loss_normalizer", "sequence"),
        ("train", "t_min", 0.1),
        ("train", "t_max", 0.5),
        ("train", "optimizer", "muon"),
        ("train", "ema_decay", 0.9),
        ("train", "lora_rank", 4),
        ("data", "max_seq_len", 128),
        ("data", "text_keys", ["code"]),
        ("data", "min_chunk_tokens", 4),
        ("distill", "distillation_alpha", 0.9),
        ("distill", "temperature", 2.0),
        ("distill", "divergence", "jsd"),
        ("distill", "state_source", "trajectory"),
    ],
)
def test_a_field_that_makes_another_run_is_named(section, name, value):
    (difference,) = changed(config(), config(**{section: {name: value}}))
    before = getattr(getattr(config(), section), name)
    assert difference == f"{section}.{name} was {before} and is {value} now"


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "lr", 1e-5),
        ("train", "max_steps", 9),
        ("train", "lr_decay_style", "wsd"),
        ("train", "micro_batch_size", 2),
        ("train", "output_dir", "elsewhere"),
        ("train", "data_parallel_mode", "fsdp"),
        ("train", "enable_gradient_checkpointing", True),
        ("train", "weight_decay", 0.3),
        ("data", "train_path", "moved"),
        ("data", "packing", True),
        ("distill", "teacher_address", "host:2"),
        ("distill", "encoding", "top_k"),
        ("distill", "num_sampling_steps", 7),
    ],
)
def test_a_field_that_may_change_is_told_with_both_values(section, name, value):
    before, after = config(), config(**{section: {name: value}})
    assert changed(before, after) == []
    assert config_facts(before)[DIGEST] == config_facts(after)[DIGEST]
    old = getattr(getattr(before, section), name)
    (change,) = config_changes(config_file.to_yaml(before), config_file.to_yaml(after))
    assert change == f"{section}.{name}: {old} -> {value}"


def test_what_trajectories_depend_on_counts_where_there_are_any():
    trajectory = {"state_source": "trajectory"}
    before = config(distill=trajectory)
    (difference,) = changed(before, config(distill=trajectory | {"num_sampling_steps": 7}))
    assert difference.startswith("distill.num_sampling_steps was 200 and is 7")
    # Steps that are drawn are drawn for a micro-batch; all of them are the same for any.
    smaller = {"micro_batch_size": 2}
    (difference,) = changed(before, config(distill=trajectory, train=smaller))
    assert difference.startswith("train.micro_batch_size was 8 and is 2")
    every = trajectory | {"states_per_trajectory": 0}
    assert changed(config(distill=every), config(distill=every, train=smaller)) == []


def test_without_a_teacher_or_adapters_their_fields_may_change():
    alone = {"distillation_alpha": 0.0}
    assert changed(config(distill=alone), config(distill=alone | {"temperature": 3.0})) == []
    assert changed(config(), config(train={"lora_alpha": 4.0})) == []
    (difference,) = changed(
        config(train={"lora_rank": 2}), config(train={"lora_rank": 2, "lora_alpha": 4.0})
    )
    assert difference.startswith("train.lora_alpha")


def test_the_digest_is_of_what_must_be_equal_alone():
    one = config_facts(config())
    assert one[DIGEST] != config_facts(config(train={"seed": 7}))[DIGEST]
    assert len(str(one[DIGEST])) == 64
    # A checkpoint of an older version may lack a field, which is no difference.
    older = {name: value for name, value in one.items() if name != "train.seed"}
    assert differences(older | {DIGEST: "other"}, one) == []
