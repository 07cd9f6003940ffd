"""The loop: global normalisation, accumulation, update, checkpoints, and what it refuses."""

import copy
import dataclasses
import json
import logging
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer import config_file, losses
from student_trainer.batches import BatchPlan
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.data import Chunking, TokenizedDataset, tokenize_documents
from student_trainer.documents import Document
from student_trainer.interrupt import StopRequest
from student_trainer.metrics import MetricsLog, read_metrics
from student_trainer.optimizer import learning_rate
from student_trainer.states import BatchReader, NoisedStates, StateBatch
from student_trainer.targets import TargetCounters
from student_trainer.trainer import Trainer
from tests import tiny_models, training

GLOBAL_BATCH_SIZE = 8


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer) -> TokenizedDataset:
    documents = [Document(text=text, source="s") for text in training.texts(24)]
    return tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=48, min_chunk_tokens=4)
    )


@pytest.fixture
def student(tiny_tokenizer) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), num_layers=1)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=5)


def new_config(folder: Path, *, alpha: float = 0.0, **fields) -> Config:
    return Config(
        data=DataConfig(train_path="unused"),
        train=TrainConfig(output_dir=str(folder), **{"lr": 1e-2, **fields}),
        distill=DistillConfig(distillation_alpha=alpha, teacher_address="unused"),
    )


def batches(
    dataset: TokenizedDataset, denoiser: Denoiser, config: Config, *, steps: range
) -> Iterator[list[StateBatch]]:
    """The states of every micro-step; micro_batch_size is the configuration's."""
    reader = BatchReader(
        dataset=dataset,
        plan=BatchPlan(dataset_size=len(dataset), global_batch_size=GLOBAL_BATCH_SIZE, seed=0),
        micro_batch_size=config.train.micro_batch_size,
        rank=0,
        world_size=1,
        info=denoiser.info,
    )
    source = NoisedStates(reader=reader, config=config.train, teacher=None)
    return map(source.states, reader.micro_steps(steps.start, steps.stop))


def train(
    trainer: Trainer, arriving: Iterator[list[StateBatch]], config: Config, *, num_steps: int
) -> list[dict[str, float]]:
    path = Path(config.train.output_dir) / "metrics.jsonl"
    with MetricsLog(
        path, num_steps=num_steps, first_step=trainer.first_step, log_every_n_steps=1
    ) as log:
        trainer.train(
            arriving,
            num_micro_steps=GLOBAL_BATCH_SIZE // config.train.micro_batch_size,
            counters=TargetCounters,
            log=log,
            request=StopRequest(),
        )
    return read_metrics(path)


def run(
    dataset: TokenizedDataset, denoiser: Denoiser, config: Config, *, num_steps: int = 4
) -> list[dict[str, float]]:
    trainer = Trainer(config, denoiser, training.ONE_RANK, num_steps=num_steps)
    arriving = batches(dataset, denoiser, config, steps=range(trainer.first_step, num_steps))
    return train(trainer, arriving, config, num_steps=num_steps)


def weights(denoiser: Denoiser) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in denoiser.parameters()]


def with_teacher(arriving: Iterator[list[StateBatch]], teacher: Denoiser) -> list[list[StateBatch]]:
    """The same states with the targets of a teacher in this process."""
    head = losses.TeacherHead(teacher.head_weight.detach())
    found = []
    for micro_step in arriving:
        done = []
        for batch in micro_step:
            mask_BL = torch.arange(batch.xt_BL.shape[1]) < batch.lengths_B[:, None]
            with torch.no_grad():
                hidden_MD = teacher.hidden_states(batch.xt_BL, mask_BL)[batch.loss_BL]
            done.append(dataclasses.replace(batch, targets=losses.HiddenTargets(hidden_MD, head)))
        found.append(done)
    return found


# The update --------------------------------------------------------------------------------------


def plain_training(
    denoiser: Denoiser, steps: Sequence[StateBatch], config: Config, *, num_steps: int
) -> list[tuple[float, float]]:
    """Textbook training on whole batches: full logits, 1 / t, the mean over maskable tokens."""
    matrices = [p for p in denoiser.parameters() if p.ndim > 1]
    vectors = [p for p in denoiser.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    curve = []
    for step, batch in enumerate(steps):
        mask_BL = torch.arange(batch.xt_BL.shape[1]) < batch.lengths_B[:, None]
        logits_BLV = denoiser.logits(denoiser.hidden_states(batch.xt_BL, mask_BL))
        weights_BL = batch.loss_BL / batch.t_B[:, None]
        labels_BL = torch.zeros_like(batch.xt_BL)
        labels_BL[batch.loss_BL] = batch.labels_M
        ce_BL = -torch.log_softmax(logits_BLV, -1).gather(-1, labels_BL[..., None])[..., 0]
        # Elsewhere the label may be the mask, whose probability is 0.
        ce_BL = ce_BL.where(batch.loss_BL, 0.0)
        loss = (weights_BL * ce_BL).sum() / batch.num_maskable_B.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(denoiser.parameters(), config.train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps=num_steps, config=config.train)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((float(loss.detach()), float(norm)))
    return curve


def test_training_is_the_textbooks(dataset, student, tmp_path):
    config = new_config(tmp_path, micro_batch_size=2, weight_decay=0.1)
    plain = copy.deepcopy(student)
    whole = dataclasses.replace(
        config, train=dataclasses.replace(config.train, micro_batch_size=GLOBAL_BATCH_SIZE)
    )
    steps = [batch for (batch,) in batches(dataset, plain, whole, steps=range(4))]
    curve = plain_training(plain, steps, config, num_steps=4)
    assert max(norm for _, norm in curve) > config.train.max_grad_norm

    metrics = run(dataset, student, config)

    # Float32 sums in another order, and Adam's first steps amplify the rounding of tiny gradients.
    assert [step["loss"] for step in metrics] == pytest.approx([a for a, _ in curve], rel=1e-5)
    assert [step["grad_norm"] for step in metrics] == pytest.approx([b for _, b in curve], rel=1e-4)
    for ours, theirs in zip(weights(student), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [step["ce"] for step in metrics] == [step["loss"] for step in metrics]
    assert {step["kd"] for step in metrics} == {0.0}
    assert [step["num_masked"] for step in metrics] == [batch.num_masked for batch in steps]
    assert [step["num_tokens"] for step in metrics] == [int(b.lengths_B.sum()) for b in steps]


@pytest.mark.parametrize("normalizer", ["masked_tokens", "all_tokens", "sequence"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_accumulation_changes_neither_loss_nor_gradient(
    dataset, student, tiny_denoiser, tmp_path, *, normalizer, alpha
):
    found = []
    for micro_batch_size in (8, 4, 1):
        config = new_config(
            tmp_path, alpha=alpha, micro_batch_size=micro_batch_size, loss_normalizer=normalizer
        )
        denoiser = copy.deepcopy(student)
        arriving = with_teacher(batches(dataset, denoiser, config, steps=range(1)), tiny_denoiser)
        trainer = Trainer(config, denoiser, training.ONE_RANK, num_steps=1)
        (step,) = train(trainer, iter(arriving), config, num_steps=1)
        found.append(step)
    for step in found[1:]:
        for name in ("loss", "ce", "kd", "grad_norm"):
            assert step[name] == pytest.approx(found[0][name], rel=1e-6)
        assert step["num_masked"] == found[0]["num_masked"]
    assert (found[0]["kd"] > 0) == (alpha > 0)
    mixed = (1 - alpha) * found[0]["ce"] + alpha * found[0]["kd"]
    assert found[0]["loss"] == pytest.approx(mixed, rel=1e-6)


def test_the_norm_that_is_reported_is_the_one_before_clipping(dataset, student, tmp_path):
    unclipped, clipped = copy.deepcopy(student), copy.deepcopy(student)
    (free,) = run(dataset, unclipped, new_config(tmp_path, max_grad_norm=0.0), num_steps=1)
    (bound,) = run(
        dataset, clipped, new_config(tmp_path, max_grad_norm=free["grad_norm"] / 2), num_steps=1
    )
    assert bound["grad_norm"] == free["grad_norm"]
    assert bound["loss"] == free["loss"]


def test_a_step_without_a_masked_position_is_a_zero_loss(dataset, student, tmp_path):
    config = new_config(tmp_path, micro_batch_size=4, weight_decay=0.0)
    empty = [
        [
            dataclasses.replace(
                batch, loss_BL=torch.zeros_like(batch.loss_BL), labels_M=batch.labels_M[:0]
            )
            for batch in micro_step
        ]
        for micro_step in batches(dataset, student, config, steps=range(1))
    ]
    config = new_config(
        tmp_path, micro_batch_size=4, weight_decay=0.0, loss_normalizer="masked_tokens"
    )
    before = weights(student)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    (step,) = train(trainer, iter(empty), config, num_steps=1)
    assert (step["loss"], step["grad_norm"], step["num_masked"]) == (0.0, 0.0, 0)
    assert all(map(torch.equal, weights(student), before))


# A teacher that teaches nothing ------------------------------------------------------------------


def copied_run(dataset, teacher: Denoiser, config: Config, *, num_steps: int = 2):
    student = copy.deepcopy(teacher).requires_grad_(True)
    arriving = with_teacher(batches(dataset, student, config, steps=range(num_steps)), teacher)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=num_steps)
    return train(trainer, iter(arriving), config, num_steps=num_steps)


def test_a_copy_of_the_teacher_with_nothing_else_to_learn_is_refused(
    dataset, tiny_denoiser, tmp_path
):
    with pytest.raises(ValueError, match="the distillation loss is zero") as caught:
        copied_run(dataset, tiny_denoiser, new_config(tmp_path, alpha=1.0))
    assert "student is a copy of the teacher" in str(caught.value)
    assert "Use a smaller student (model.config_overrides)" in str(caught.value)


def test_a_copy_of_the_teacher_that_has_data_is_told_once(dataset, tiny_denoiser, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = copied_run(dataset, tiny_denoiser, new_config(tmp_path, alpha=0.5))
    (message,) = (text for text in caplog.messages if "distillation loss is zero" in text)
    assert "only the cross-entropy trains" in message
    assert len(metrics) == 2


def test_another_student_is_not_warned_of(dataset, student, tiny_denoiser, tmp_path, caplog):
    config = new_config(tmp_path, alpha=1.0)
    arriving = with_teacher(batches(dataset, student, config, steps=range(1)), tiny_denoiser)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    (step,) = train(trainer, iter(arriving), config, num_steps=1)
    assert step["kd"] > 0.1
    assert step["loss"] == pytest.approx(step["kd"])
    assert step["ce"] > 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# What it leaves behind ---------------------------------------------------------------------------


def test_a_run_that_stopped_goes_on_bit_for_bit(dataset, student, tmp_path):
    again = copy.deepcopy(student)
    whole = run(dataset, student, new_config(tmp_path / "whole", save_steps=2), num_steps=5)
    folders = (tmp_path / "whole" / "checkpoints").iterdir()
    assert sorted(path.name for path in folders) == ["step-2", "step-4", "step-5"]

    config = new_config(
        tmp_path / "resumed",
        load_checkpoint_path=str(tmp_path / "whole" / "checkpoints" / "step-2"),
    )
    resumed = run(dataset, again, config, num_steps=5)

    assert [step["step"] for step in resumed] == [3, 4, 5]
    assert training.without(resumed, *training.TIMES) == training.without(
        whole[2:], *training.TIMES
    )
    assert all(map(torch.equal, weights(again), weights(student)))


def test_a_resume_tells_what_changed_and_refuses_what_must_not(dataset, student, tmp_path, caplog):
    def begin(folder: str, **fields) -> Trainer:
        config = new_config(tmp_path / folder, micro_batch_size=8, **fields)
        trainer = Trainer(
            config,
            copy.deepcopy(student),
            training.ONE_RANK,
            num_steps=4,
            facts={"teacher_revision": fields.get("wandb_name", "a1"), "global_batch_size": 8},
            config_text=config_file.to_yaml(config),
        )
        return trainer

    trainer = begin("first", save_steps=2)
    config = new_config(tmp_path / "first", micro_batch_size=8)
    train(trainer, batches(dataset, student, config, steps=range(4)), config, num_steps=4)
    path = tmp_path / "first" / "checkpoints" / "step-2"
    facts = json.loads((path / "run_facts.json").read_text())
    assert (facts["steps_done"], facts["next_sample"]) == (2, 16)
    assert facts["teacher_revision"] == "a1" and len(facts["config_digest"]) == 64

    load = {"load_checkpoint_path": str(path)}
    with caplog.at_level(logging.INFO):
        assert begin("second", lr=1e-3, lr_decay_style="wsd", **load).first_step == 2
    (told,) = (text for text in caplog.messages if text.startswith("resumed"))
    assert "train.lr: 0.01 -> 0.001" in told and "train.lr_decay_style: cosine -> wsd" in told
    with pytest.raises(ValueError, match=r"does not fit .*: train.seed was 42 and is 7 now; train"):
        begin("third", seed=7, t_min=0.1, **load)
    with pytest.raises(ValueError, match="teacher_revision was a1 and is b2 now"):
        begin("third", wandb_name="b2", **load)


def test_without_save_steps_there_are_no_checkpoints(dataset, student, tmp_path):
    run(dataset, student, new_config(tmp_path), num_steps=1)
    assert not (tmp_path / "checkpoints").exists()


def test_the_exported_student_loads_as_a_denoiser_with_the_same_logits(dataset, student, tmp_path):
    config = new_config(tmp_path)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    train(trainer, batches(dataset, student, config, steps=range(1)), config, num_steps=1)
    folder = trainer.export()
    loaded = checkpoints.load_denoiser(str(folder))
    assert checkpoints.weights_digest(loaded) == checkpoints.weights_digest(student)
    assert loaded.info.tokenizer_fingerprint == student.info.tokenizer_fingerprint
    ids_BL = torch.tensor([[1, 7, 2, 9, 2, 30]])
    with torch.no_grad():
        ours = student.eval().logits(student.hidden_states(ids_BL))
        theirs = loaded.logits(loaded.hidden_states(ids_BL))
    assert torch.equal(ours, theirs)


def test_a_step_of_many_micro_steps_holds_two_batches_at_most(dataset, student, tmp_path):
    config = new_config(tmp_path, micro_batch_size=1)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    held: list[weakref.ref[StateBatch]] = []
    most = 0

    def arriving() -> Iterator[list[StateBatch]]:
        nonlocal most
        for made in batches(dataset, student, config, steps=range(1)):
            held.extend(map(weakref.ref, made))
            most = max(most, sum(reference() is not None for reference in held))
            yield made
            del made

    train(trainer, arriving(), config, num_steps=1)
    assert len(held) == GLOBAL_BATCH_SIZE
    # The one that waits for its backward, the one before it whose turn it is, and the newest.
    assert most <= 3


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights(dataset, student, tmp_path):
    config = new_config(tmp_path, micro_batch_size=8)
    with torch.no_grad():
        student.model.model.norm.weight[0] = torch.inf
    before = copy.deepcopy(student.state_dict())
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    with pytest.raises(ValueError, match=r"gradient norm of step 1 is (nan|inf); lower train.lr"):
        train(trainer, batches(dataset, student, config, steps=range(1)), config, num_steps=1)
    after = student.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_checkpoint_with_all_steps_done_is_refused(dataset, student, tmp_path):
    config = new_config(tmp_path, micro_batch_size=8, save_steps=1)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    train(trainer, batches(dataset, student, config, steps=range(1)), config, num_steps=1)
    again = new_config(
        tmp_path / "b", load_checkpoint_path=str(tmp_path / "checkpoints" / "step-1")
    )
    with pytest.raises(ValueError, match=r"has 1 steps done, train.max_steps is 1; raise"):
        Trainer(again, student, training.ONE_RANK, num_steps=1)


# What moves, and what is exported ----------------------------------------------------------------


# Adafactor's steps are shares of a matrix's own size.
@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("adafactor", 0.2), ("muon", 1e-2)])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_every_optimizer_learns_and_goes_on_bit_for_bit(
    dataset, student, tmp_path, *, optimizer, lr, ema_decay
):
    again = copy.deepcopy(student)
    fields = {"optimizer": optimizer, "lr": lr, "ema_decay": ema_decay, "save_steps": 3}
    whole = run(dataset, student, new_config(tmp_path / "a", **fields), num_steps=6)
    assert whole[-1]["loss"] < whole[0]["loss"]
    path = str(tmp_path / "a" / "checkpoints" / "step-3")
    config = new_config(tmp_path / "b", load_checkpoint_path=path, **fields)
    run(dataset, again, config, num_steps=6)
    assert all(map(torch.equal, weights(again), weights(student)))


def test_the_moving_average_is_exported_where_that_is_asked_for(dataset, student, tmp_path):
    config = new_config(tmp_path, ema_decay=0.5, export_weights="ema", micro_batch_size=8)
    before = weights(student)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=1)
    train(trainer, batches(dataset, student, config, steps=range(1)), config, num_steps=1)
    after = weights(student)
    exported = checkpoints.load_denoiser(str(trainer.export()))
    for old, new, average in zip(before, after, weights(exported), strict=True):
        torch.testing.assert_close(average, (old + new) / 2)
    assert all(map(torch.equal, weights(student), after))


def test_adapters_alone_are_trained_and_merged_into_what_is_exported(dataset, student, tmp_path):
    before = student.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    config = new_config(tmp_path, lora_rank=2, micro_batch_size=8)
    trainer = Trainer(config, student, training.ONE_RANK, num_steps=3)
    metrics = train(trainer, batches(dataset, student, config, steps=range(3)), config, num_steps=3)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    for name, tensor in student.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer.", ".")])

    exported = checkpoints.load_denoiser(str(trainer.export()))
    assert exported.state_dict().keys() == before.keys()
    ids_BL = torch.tensor([[1, 7, 2, 9, 2, 30]])
    with torch.no_grad():
        ours = student.eval().hidden_states(ids_BL)
        theirs = exported.hidden_states(ids_BL)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_an_adapter_for_no_layer_is_refused(student, tmp_path):
    config = new_config(tmp_path, lora_rank=2, lora_target_modules=["q_prj"])
    with pytest.raises(ValueError, match=r"lora_target_modules names 'q_prj'.*known: .*q_proj"):
        Trainer(config, student, training.ONE_RANK, num_steps=1)


def test_losses_are_told_by_mask_ratio(dataset, student, tmp_path):
    (step,) = run(dataset, student, new_config(tmp_path, loss_weighting="none"), num_steps=1)
    found = {name: value for name, value in step.items() if name.startswith("ce_t")}
    assert found and found.keys() <= {"ce_t0.25", "ce_t0.5", "ce_t0.75", "ce_t1"}
    assert all(value > 0 for value in found.values())
