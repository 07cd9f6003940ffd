"""Samples and their states are the trainer's, however a loader deals them out."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from student_trainer.batches import BatchPlan
from student_trainer.config import TrainConfig
from student_trainer.data import Chunking, TokenizedDataset, tokenize_documents
from student_trainer.documents import Document
from student_trainer.samples import RunSamples, StateCollator
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch
from tests import training

GLOBAL_BATCH_SIZE = 8
SEED = 3
NUM_STEPS = 5


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer) -> TokenizedDataset:
    documents = [Document(text=text[6:], prompt=text[:6], source="s") for text in training.texts()]
    return tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=48, min_chunk_tokens=4)
    )


@pytest.fixture(scope="module")
def plan(dataset) -> BatchPlan:
    return BatchPlan(dataset_size=len(dataset), global_batch_size=GLOBAL_BATCH_SIZE, seed=SEED)


def trainers_states(dataset, plan, info, step: int) -> StateBatch:
    reader = BatchReader(
        dataset=dataset,
        plan=plan,
        micro_batch_size=GLOBAL_BATCH_SIZE,
        rank=0,
        world_size=1,
        info=info,
    )
    config = TrainConfig(output_dir="unused", seed=SEED)
    (states,) = NoisedStates(reader=reader, config=config, teacher=None).states(MicroStep(step, 0))
    return states


@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
def test_a_loader_gives_the_trainers_states(
    tiny_denoiser, dataset, plan, micro_batch_size: int
) -> None:
    loader = DataLoader(
        RunSamples(dataset, plan, num_steps=NUM_STEPS),
        batch_size=micro_batch_size,
        collate_fn=StateCollator(
            tiny_denoiser.info, global_batch_size=GLOBAL_BATCH_SIZE, seed=SEED
        ),
    )
    batches = list(loader)
    assert len(batches) == NUM_STEPS * GLOBAL_BATCH_SIZE // micro_batch_size
    rows = [(batch, row) for batch in batches for row in range(micro_batch_size)]
    for step in range(NUM_STEPS):
        theirs = trainers_states(dataset, plan, tiny_denoiser.info, step)
        for place in range(GLOBAL_BATCH_SIZE):
            batch, row = rows[step * GLOBAL_BATCH_SIZE + place]
            length = int(batch.lengths_B[row])
            assert batch.sequence_ids[row] == theirs.sequence_ids[place]
            assert batch.t_B[row] == theirs.t_B[place]
            assert batch.num_maskable_B[row] == theirs.num_maskable_B[place]
            for name in ("xt_BL", "loss_BL", "clean_BL"):
                ours, same = getattr(batch, name)[row], getattr(theirs, name)[place]
                assert torch.equal(ours[:length], same[:length]), name


def test_a_batch_may_hold_samples_of_several_steps_in_any_order(
    tiny_denoiser, dataset, plan
) -> None:
    samples = RunSamples(dataset, plan, num_steps=NUM_STEPS)
    collate = StateCollator(tiny_denoiser.info, global_batch_size=GLOBAL_BATCH_SIZE, seed=SEED)
    mixed = collate([samples[index] for index in (17, 3, 12)])
    for row, index in enumerate((17, 3, 12)):
        alone = collate([samples[index]])
        length = int(alone.lengths_B[0])
        assert torch.equal(mixed.xt_BL[row, :length], alone.xt_BL[0])
        assert mixed.t_B[row] == alone.t_B[0]


def test_a_sequence_gets_other_noise_in_the_next_epoch(tiny_denoiser, dataset) -> None:
    plan = BatchPlan(dataset_size=len(dataset), global_batch_size=len(dataset), seed=SEED)
    samples = RunSamples(dataset, plan, num_steps=2)
    collate = StateCollator(tiny_denoiser.info, global_batch_size=len(dataset), seed=SEED)
    first = samples[0]
    again = next(
        samples[index]
        for index in range(len(dataset), 2 * len(dataset))
        if np.array_equal(samples[index].input_ids_L, first.input_ids_L)
    )
    states = collate([first, again])
    assert states.clean_BL is not None
    assert torch.equal(states.clean_BL[0], states.clean_BL[1])
    assert not torch.equal(states.xt_BL[0], states.xt_BL[1])


def test_states_come_back_from_a_worker_process_as_they_are(tiny_denoiser, dataset, plan) -> None:
    collate = StateCollator(tiny_denoiser.info, global_batch_size=GLOBAL_BATCH_SIZE, seed=SEED)
    samples = RunSamples(dataset, plan, num_steps=1)
    (theirs,) = DataLoader(samples, batch_size=GLOBAL_BATCH_SIZE, collate_fn=collate)
    loader = DataLoader(
        samples,
        batch_size=GLOBAL_BATCH_SIZE,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    (ours,) = loader
    for field in dataclasses.fields(StateBatch):
        left, right = getattr(ours, field.name), getattr(theirs, field.name)
        assert torch.equal(left, right) if torch.is_tensor(left) else left == right, field.name


def test_there_is_no_sample_behind_the_last(dataset, plan) -> None:
    samples = RunSamples(dataset, plan, num_steps=2)
    assert len(samples) == 2 * GLOBAL_BATCH_SIZE
    with pytest.raises(IndexError, match="sample 16 of 16"):
        samples[16]


def test_a_batch_without_sequences_is_refused(tiny_denoiser) -> None:
    with pytest.raises(ValueError, match="global_batch_size must be at least 1, got 0"):
        StateCollator(tiny_denoiser.info, global_batch_size=0)
