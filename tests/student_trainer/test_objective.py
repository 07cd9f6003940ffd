"""The student and its loss as one module, against the same computed plainly in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from student_trainer import losses
from student_trainer.batches import BatchPlan
from student_trainer.config import TrainConfig
from student_trainer.data import Chunking, tokenize_documents
from student_trainer.documents import Document
from student_trainer.objective import DistillationObjective
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch, unpad
from tests import training

NORMALIZER = 37.5


@pytest.fixture(scope="module")
def batch(tiny_tokenizer, tiny_denoiser) -> StateBatch:
    """Rows of several lengths."""
    documents = [Document(text=text, source="s") for text in training.texts(12)]
    dataset = tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=48, min_chunk_tokens=4)
    )
    reader = BatchReader(
        dataset=dataset,
        plan=BatchPlan(dataset_size=len(dataset), global_batch_size=6, seed=0),
        micro_batch_size=6,
        rank=0,
        world_size=1,
        info=tiny_denoiser.info,
    )
    source = NoisedStates(reader=reader, config=TrainConfig(output_dir="unused"), teacher=None)
    (batch,) = source.states(MicroStep(0, 0))
    assert len(set(batch.lengths_B.tolist())) > 1
    return batch


@pytest.fixture
def wide_student(tiny_denoiser) -> Denoiser:
    """In float64, with gradients of its own."""
    return copy.deepcopy(tiny_denoiser).double().train().requires_grad_(True)


def plain_cross_entropy(denoiser: Denoiser, batch: StateBatch, weighting: str, normalizer: str):
    """Row by row and position by position, on full logits."""
    total = torch.zeros((), dtype=torch.float64)
    labels = iter(batch.labels_M.tolist())
    rows = unpad(batch.xt_BL, batch.lengths_B)
    for index, (ids, t) in enumerate(zip(rows, batch.t_B.double(), strict=True)):
        hidden_LD = denoiser.hidden_states(torch.from_numpy(ids)[None])[0]
        logits_LV = hidden_LD @ denoiser.head_weight[: denoiser.info.vocab_size].T
        support = [v for v in range(denoiser.info.vocab_size) if v != denoiser.info.mask_token_id]
        for position in np.flatnonzero(ids == denoiser.info.mask_token_id):
            probs = torch.softmax(logits_LV[position, support], dim=-1)
            p = probs[support.index(next(labels))]
            weight = {"none": 1.0, "inv_t": 1 / t, "path": (1 + p.detach()) / t}[weighting]
            if normalizer == "sequence":
                weight = weight / batch.num_maskable_B[index]
            total = total - weight * p.log()
    assert next(labels, None) is None
    return total / NORMALIZER


def gradients(total: Tensor, denoiser: Denoiser) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(denoiser.parameters())))


@pytest.mark.parametrize("weighting", ["none", "inv_t", "path"])
@pytest.mark.parametrize("normalizer", ["masked_tokens", "all_tokens", "sequence"])
def test_cross_entropy_and_its_gradient_are_the_plain_ones(
    wide_student, batch, weighting, normalizer
):
    config = losses.LossConfig(alpha=0.0, weighting=weighting, normalizer=normalizer)
    result = DistillationObjective(wide_student, config)(batch, NORMALIZER)
    actual = gradients(result.total, wide_student)
    plain = plain_cross_entropy(wide_student, batch, weighting, normalizer)
    expected = gradients(plain, wide_student)

    # t, and so the weight, is a float32: 6e-8.
    assert float(result.total.detach()) == pytest.approx(float(plain.detach()), rel=3e-7)
    assert result.ce == pytest.approx(float(plain.detach()), rel=3e-7)
    assert result.kd == 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm()) + 1e-12


def test_a_copy_of_the_teacher_has_no_distillation_loss(tiny_denoiser, batch):
    student = copy.deepcopy(tiny_denoiser).train().requires_grad_(True)
    head = losses.TeacherHead(tiny_denoiser.head_weight.detach())
    hidden_MD = tiny_denoiser.hidden_states(
        batch.xt_BL, torch.arange(batch.xt_BL.shape[1]) < batch.lengths_B[:, None]
    )[batch.loss_BL]
    with_targets = StateBatch(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__ if name != "targets"},
        targets=losses.HiddenTargets(hidden_MD.detach(), head),
    )

    result = DistillationObjective(student, losses.LossConfig(alpha=1.0))(with_targets, NORMALIZER)

    assert abs(result.kd) < 1e-6
    assert result.ce > 0
    assert max(float(g.abs().max()) for g in gradients(result.total, student)) < 1e-4


def test_a_batch_without_positions_has_a_zero_loss_that_reaches_every_parameter(
    wide_student, batch
):
    empty = StateBatch(
        xt_BL=batch.xt_BL,
        lengths_B=batch.lengths_B,
        loss_BL=torch.zeros_like(batch.loss_BL),
        labels_M=batch.labels_M[:0],
        t_B=batch.t_B,
        num_maskable_B=batch.num_maskable_B,
        targets=None,
    )
    result = DistillationObjective(wide_student, losses.LossConfig(alpha=0.0))(empty, NORMALIZER)
    result.total.backward()
    assert float(result.total.detach()) == 0.0
    # Without a gradient of every one, data parallelism would wait for it.
    for parameter in wide_student.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_mixed_precision_keeps_weights_and_loss_in_float32(tiny_denoiser, batch):
    student = copy.deepcopy(tiny_denoiser).train().requires_grad_(True)
    config = losses.LossConfig(alpha=0.0)
    plain = DistillationObjective(student, config)(batch, NORMALIZER)
    mixed = DistillationObjective(student, config, mixed_precision=True)(batch, NORMALIZER)
    mixed.total.backward()
    assert mixed.total.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    # bfloat16 has 8 bits: 2**-8 a number, averaged over hundreds of positions.
    assert float(mixed.total.detach()) == pytest.approx(float(plain.total.detach()), rel=1e-2)
    assert float(mixed.total.detach()) != float(plain.total.detach())
