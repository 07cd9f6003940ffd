"""The order of the data, and padding."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_trainer.batches import BatchPlan, collate, rank_slice
from student_trainer.data import Chunking, tokenize_documents
from student_trainer.documents import Document


@given(
    dataset_size=st.integers(1, 30),
    global_batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
)
def test_every_sequence_comes_once_an_epoch(dataset_size, global_batch_size, seed):
    plan = BatchPlan(dataset_size=dataset_size, global_batch_size=global_batch_size, seed=seed)
    num_steps = 1 + 3 * dataset_size // global_batch_size
    order = [index for step in range(num_steps) for index in plan.sequence_indices(step)]
    for epoch in range(len(order) // dataset_size):
        part = order[epoch * dataset_size : (epoch + 1) * dataset_size]
        assert sorted(part) == list(range(dataset_size))


def test_epochs_and_seeds_give_other_orders():
    def order(seed, step):
        plan = BatchPlan(dataset_size=50, global_batch_size=50, seed=seed)
        return plan.sequence_indices(step)

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_resuming_from_a_step_equals_going_on():
    running = BatchPlan(dataset_size=13, global_batch_size=4, seed=3)
    steps = [running.sequence_indices(step) for step in range(20)]
    for step in (17, 5, 11):
        resumed = BatchPlan(dataset_size=13, global_batch_size=4, seed=3)
        assert resumed.sequence_indices(step) == steps[step]


def test_sequence_ids_number_the_samples_of_the_whole_run():
    plan = BatchPlan(dataset_size=3, global_batch_size=4, seed=0)
    ids = [sequence_id for step in range(3) for sequence_id in plan.sequence_ids(step)]
    assert ids == list(range(12))


def test_ranks_share_a_step_without_overlap():
    plan = BatchPlan(dataset_size=100, global_batch_size=6, seed=0)
    step = plan.sequence_indices(2)
    parts = [step[rank_slice(6, rank=rank, world_size=3)] for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert Counter(index for part in parts for index in part) == Counter(step)


def test_a_batch_that_ranks_cannot_share_evenly_is_refused():
    with pytest.raises(ValueError, match="global_batch_size=5 must be a multiple of the 2 ranks"):
        rank_slice(5, rank=0, world_size=2)


@pytest.mark.parametrize("field", ["dataset_size", "global_batch_size"])
def test_sizes_below_one_are_refused(field):
    sizes = {"dataset_size": 1, "global_batch_size": 1, field: 0}
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        BatchPlan(**sizes, seed=0)


def test_collate_pads_on_the_right(tiny_tokenizer):
    documents = [
        Document(text="return left", source="a"),
        Document(text="x", prompt="while queue", source="b"),
    ]
    dataset = tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=32, min_chunk_tokens=1)
    )

    batch = collate(dataset, [1, 0, 1], pad_token_id=299)

    rows = [dataset.sequence(index).tolist() for index in (1, 0, 1)]
    assert batch.input_ids_BL.dtype == batch.lengths_B.dtype == torch.int64
    assert batch.lengths_B.tolist() == [len(row) for row in rows]
    width = max(map(len, rows))
    assert batch.input_ids_BL.tolist() == [row + [299] * (width - len(row)) for row in rows]
    assert batch.prompt_lengths_B.tolist() == dataset.prompt_lengths[[1, 0, 1]].tolist()
