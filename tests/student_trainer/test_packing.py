"""Packed rows: the layout, and the objective on it against padded rows."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.document_masks import PADDING
from student_trainer import losses
from student_trainer.batches import BatchPlan
from student_trainer.chunks import Chunking
from student_trainer.config import TrainConfig
from student_trainer.data import tokenize_documents
from student_trainer.documents import Document
from student_trainer.objective import DistillationObjective, Objective
from student_trainer.packing import check_packing, first_fit_rows, pack
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch
from tests import training
from tests.fixtures.table import family_fixtures

ROW_TOKENS = 48


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_every_sequence_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = first_fit_rows(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in row) for row in rows]
    assert max(sizes) <= 20
    # No two rows would fit into one: the least that first fit promises.
    assert len(rows) == 1 or min(a + b for i, a in enumerate(sizes) for b in sizes[:i]) > 20


def test_packed_rows_hold_the_batch_and_say_where():
    lengths_B = torch.tensor([3, 5, 2, 4])
    input_ids_BL = torch.arange(1, 21).reshape(4, 5)
    packed = pack(input_ids_BL, lengths_B, row_tokens=8)

    assert packed.input_ids_RL.shape == (2, 8)
    real_BL = torch.arange(5) < lengths_B[:, None]
    places = packed.places_BL[real_BL]
    assert len(set(places.tolist())) == 14
    assert torch.equal(packed.input_ids_RL.flatten()[places], input_ids_BL[real_BL])
    owners = torch.arange(4)[:, None].expand(4, 5)[real_BL]
    assert torch.equal(packed.document_ids_RL.flatten()[places], owners)
    assert int((packed.document_ids_RL == PADDING).sum()) == 16 - 14


def test_a_sequence_longer_than_a_row_has_one_of_its_own():
    packed = pack(torch.ones(2, 6, dtype=torch.int64), torch.tensor([6, 2]), row_tokens=4)
    assert packed.input_ids_RL.shape == (2, 6)
    assert int((packed.document_ids_RL != PADDING).sum()) == 8


@pytest.fixture(scope="module")
def batch(tiny_tokenizer, tiny_denoiser) -> StateBatch:
    """Eight short sequences, of which several fit into a row."""
    documents = [
        Document(text=text[: 9 + 5 * n], source="s") for n, text in enumerate(training.texts(8))
    ]
    dataset = tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=ROW_TOKENS, min_chunk_tokens=2)
    )
    reader = BatchReader(
        dataset=dataset,
        plan=BatchPlan(dataset_size=len(dataset), global_batch_size=8, seed=0),
        micro_batch_size=8,
        rank=0,
        world_size=1,
        info=tiny_denoiser.info,
    )
    source = NoisedStates(reader=reader, config=TrainConfig(output_dir="unused"), teacher=None)
    (batch,) = source.states(MicroStep(0, 0))
    return batch


def run(
    denoiser: Denoiser, batch: StateBatch, *, packed: bool, mixed: bool = False
) -> tuple[Objective, list[torch.Tensor]]:
    """The loss and its gradients."""
    student = copy.deepcopy(denoiser).train().requires_grad_(True)
    objective = DistillationObjective(
        student,
        losses.LossConfig(alpha=0.0),
        mixed_precision=mixed,
        packed_row_tokens=ROW_TOKENS if packed else None,
    )
    result = objective(batch, 10.0)
    return result, list(torch.autograd.grad(result.total, list(student.parameters())))


def test_loss_and_gradients_are_those_of_padded_rows(tiny_denoiser, batch):
    rows = pack(batch.xt_BL, batch.lengths_B, row_tokens=ROW_TOKENS)
    assert rows.input_ids_RL.shape[0] < len(batch.lengths_B)
    padded, wanted = run(tiny_denoiser, batch, packed=False)
    packed, found = run(tiny_denoiser, batch, packed=True)
    # Float32 sums in another order.
    torch.testing.assert_close(packed.total, padded.total, atol=0, rtol=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_what_the_others_of_a_row_say_changes_no_loss(tiny_denoiser, batch):
    first, _ = run(tiny_denoiser, without_loss_but_of(batch, 3), packed=True)
    poisoned = batch.xt_BL.clone()
    others = torch.arange(len(poisoned)) != 3
    poisoned[others] = (poisoned[others] + 7) % 200
    changed = dataclasses.replace(batch, xt_BL=poisoned)
    second, _ = run(tiny_denoiser, without_loss_but_of(changed, 3), packed=True)
    assert first.ce == second.ce > 0


def without_loss_but_of(batch: StateBatch, row: int) -> StateBatch:
    """The same states; only one of the sequences is learned."""
    kept_B1 = (torch.arange(len(batch.lengths_B)) == row)[:, None]
    kept_M = kept_B1.expand_as(batch.loss_BL)[batch.loss_BL]
    return dataclasses.replace(
        batch, loss_BL=batch.loss_BL & kept_B1, labels_M=batch.labels_M[kept_M]
    )


def test_packed_rows_run_in_mixed_precision(tiny_denoiser, batch):
    exact, _ = run(tiny_denoiser, batch, packed=True)
    mixed, _ = run(tiny_denoiser, batch, packed=True, mixed=True)
    # bfloat16 has 8 bits, and the loss is a mean over dozens of positions.
    assert mixed.ce == pytest.approx(exact.ce, rel=1e-2)


def test_a_student_that_cannot_is_refused_by_name(tiny_denoiser, tmp_path):
    check_packing(tiny_denoiser)
    fixture = next(f for f in family_fixtures().values() if "sdar" in f.name.lower())
    fixture.build(tmp_path / "blocks")
    denoiser = checkpoints.load_denoiser(str(tmp_path / "blocks"), **fixture.load_options)
    with pytest.raises(ValueError, match=r"data.packing is true, which the student .* cannot do"):
        check_packing(denoiser)
