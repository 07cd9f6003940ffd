"""The states a student is trained on: what is masked, what is asked, what each position means."""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from masked_diffusion.families import Denoiser
from student_trainer import losses, wire
from student_trainer.batches import BatchPlan
from student_trainer.client import TeacherClient
from student_trainer.config import DistillConfig, TrainConfig
from student_trainer.data import Chunking, TokenizedDataset, tokenize_documents
from student_trainer.documents import Document
from student_trainer.states import (
    BatchReader,
    MicroStep,
    NoisedStates,
    StateBatch,
    TrajectoryStates,
    check_positions,
    unpad,
)
from student_trainer.targets import RemoteTeacher
from tests import training
from tests.servers import RunningServer, serve
from tests.teacher_server.calls import hidden_of

NUM_STEPS = 20
TRAIN = TrainConfig(output_dir="unused", seed=3)


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer) -> TokenizedDataset:
    """Every third document has a prompt."""
    documents = [
        Document(text=text[9 * (index % 3 == 0) :], prompt=text[: 9 * (index % 3 == 0)], source="s")
        for index, text in enumerate(training.texts(30))
    ]
    return tokenize_documents(
        documents, tiny_tokenizer, chunking=Chunking(max_seq_len=64, min_chunk_tokens=4)
    )


@pytest.fixture(scope="module")
def server(tiny_denoiser) -> Iterator[RunningServer]:
    with serve(tiny_denoiser, max_padding_fraction=0.9) as running:
        yield running


def new_reader(
    dataset: TokenizedDataset,
    denoiser: Denoiser,
    *,
    micro_batch_size: int,
    global_batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
) -> BatchReader:
    return BatchReader(
        dataset=dataset,
        plan=BatchPlan(
            dataset_size=len(dataset), global_batch_size=global_batch_size, seed=TRAIN.seed
        ),
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        info=denoiser.info,
    )


def new_teacher(client: TeacherClient, *, algorithm: str = "p2", **spec) -> RemoteTeacher:
    return RemoteTeacher(
        client,
        spec=wire.TargetSpec(**spec),
        sampler=wire.SamplerSpec(
            algorithm=algorithm, num_steps=NUM_STEPS, temperature=0.7, top_k=50, alg_temp=0.5
        ),
    )


def trajectory_config(**fields) -> DistillConfig:
    return DistillConfig(
        teacher_address="unused",
        state_source="trajectory",
        num_sampling_steps=NUM_STEPS,
        collect_every_n_steps=2,
        **fields,
    )


def rows_of(batch: StateBatch) -> list[tuple[object, ...]]:
    """Each row by its value, without its padding."""
    counts = batch.loss_BL.sum(-1).tolist()
    labels = batch.labels_M.split(counts)
    return [
        (
            ids.tolist(),
            np.flatnonzero(loss_L).tolist(),
            labels_M.tolist(),
            float(t),
            int(num_maskable),
        )
        for ids, loss_L, labels_M, t, num_maskable in zip(
            unpad(batch.xt_BL, batch.lengths_B),
            batch.loss_BL.numpy(),
            labels,
            batch.t_B,
            batch.num_maskable_B,
            strict=True,
        )
    ]


# Data masked at random ---------------------------------------------------------------------------


def test_prompt_padding_and_special_tokens_are_never_masked(dataset, tiny_denoiser):
    info = tiny_denoiser.info
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=8)
    source = NoisedStates(reader=reader, config=TRAIN, teacher=None)
    num_masked = num_prompts = 0
    for step in range(40):
        micro_step = MicroStep(step, 0)
        clean, _ = reader.read(micro_step)
        (batch,) = source.states(micro_step)
        masked_BL = batch.xt_BL == info.mask_token_id
        assert torch.equal(masked_BL, batch.loss_BL)
        assert torch.equal(batch.xt_BL[~masked_BL], clean.input_ids_BL[~masked_BL])
        assert torch.equal(batch.labels_M, clean.input_ids_BL[masked_BL])
        positions_L = torch.arange(masked_BL.shape[1])
        assert not masked_BL[positions_L >= clean.lengths_B[:, None]].any()
        assert not masked_BL[positions_L < clean.prompt_lengths_B[:, None]].any()
        assert not set(batch.labels_M.tolist()) & set(info.special_token_ids)
        assert batch.targets is None
        num_masked += batch.num_masked
        num_prompts += int((clean.prompt_lengths_B > 0).sum())
    assert num_masked > 1000
    assert num_prompts > 40


def test_the_share_masked_is_the_rows_time(dataset, tiny_denoiser):
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=8)
    source = NoisedStates(reader=reader, config=TRAIN, teacher=None)
    batches = [batch for step in range(200) for batch in source.states(MicroStep(step, 0))]
    t_R = torch.cat([batch.t_B for batch in batches]).double()
    masked_R = torch.cat([batch.loss_BL.sum(-1) for batch in batches]).double()
    maskable_R = torch.cat([batch.num_maskable_B for batch in batches]).double()
    # The sum over rows of masked minus expected has variance sum n t (1 - t).
    deviation = (masked_R - maskable_R * t_R).sum()
    assert abs(deviation) < 4 * (maskable_R * t_R * (1 - t_R)).sum().sqrt()
    # Stratified: every eighth of [0, 1) once a step.
    for batch in batches[:20]:
        assert sorted((batch.t_B * 8).long().tolist()) == list(range(8))


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 4), (2, 4), (2, 2), (4, 1)])
def test_all_ranks_together_see_what_one_would(
    dataset, tiny_denoiser, world_size, micro_batch_size
):
    whole = NoisedStates(
        reader=new_reader(dataset, tiny_denoiser, micro_batch_size=8), config=TRAIN, teacher=None
    )
    ranks = [
        NoisedStates(
            reader=new_reader(
                dataset,
                tiny_denoiser,
                micro_batch_size=micro_batch_size,
                rank=rank,
                world_size=world_size,
            ),
            config=TRAIN,
            teacher=None,
        )
        for rank in range(world_size)
    ]
    for step in (0, 7):
        (batch,) = whole.states(MicroStep(step, 0))
        pieces = [
            row
            for rank in ranks
            for micro_step in rank.reader.micro_steps(step, step + 1)
            for piece in rank.states(micro_step)
            for row in rows_of(piece)
        ]
        assert pieces == rows_of(batch)


def test_states_are_a_function_of_seed_and_step(dataset, tiny_denoiser):
    def rows(step: int, seed: int = 3) -> list[tuple[object, ...]]:
        reader = new_reader(dataset, tiny_denoiser, micro_batch_size=8)
        config = dataclasses.replace(TRAIN, seed=seed)
        (batch,) = NoisedStates(reader=reader, config=config, teacher=None).states(
            MicroStep(step, 0)
        )
        return rows_of(batch)

    assert rows(5) == rows(5)
    assert rows(5) != rows(6)
    assert rows(5) != rows(5, seed=4)


def test_the_teacher_scores_exactly_these_states(dataset, tiny_denoiser, server):
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=8)
    with TeacherClient(server.address) as client:
        source = NoisedStates(reader=reader, config=TRAIN, teacher=new_teacher(client))
        (batch,) = source.states(MicroStep(2, 0))
    assert isinstance(batch.targets, losses.HiddenTargets)
    expected = [
        hidden_of(tiny_denoiser, ids)[ids == tiny_denoiser.info.mask_token_id]
        for ids in unpad(batch.xt_BL, batch.lengths_B)
    ]
    # Float32 through two layers, in another batch.
    np.testing.assert_allclose(
        batch.targets.hidden_MD.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-5
    )


def test_targets_at_other_positions_are_refused(dataset, tiny_denoiser, server):
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=4)
    with TeacherClient(server.address) as client:
        teacher = new_teacher(client)
        source = NoisedStates(reader=reader, config=TRAIN, teacher=teacher)
        (batch,) = source.states(MicroStep(0, 0))
        records = teacher.score(unpad(batch.xt_BL, batch.lengths_B), sequence_ids=range(4))
    check_positions(records, batch.loss_BL)
    moved_BL = batch.loss_BL.clone()
    moved_BL[2] = moved_BL[2].roll(1)
    with pytest.raises(ValueError, match="of sequence 2 are not at its masked positions"):
        check_positions(records, moved_BL)


def test_a_batch_without_a_masked_position_has_targets_of_none(
    dataset, tiny_denoiser, server, tiny_tokenizer
):
    only_special = tokenize_documents(
        [Document(text="", source="s")] * 4,
        tiny_tokenizer,
        chunking=Chunking(max_seq_len=64, min_chunk_tokens=1),
    )
    reader = new_reader(only_special, tiny_denoiser, micro_batch_size=4, global_batch_size=4)
    with TeacherClient(server.address) as client:
        teacher = new_teacher(client)
        noised = NoisedStates(reader=reader, config=TRAIN, teacher=teacher)
        drawn = TrajectoryStates(
            reader=reader, config=TRAIN, distill=trajectory_config(), teacher=teacher
        )
        for source in (noised, drawn):
            (batch,) = source.states(MicroStep(0, 0))
            assert len(batch.lengths_B) == 4
            assert batch.num_masked == 0
            assert batch.targets is not None and batch.targets.num_positions == 0


# States on the teacher's way ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["p2", "entropy", "origin"])
def test_trajectory_states_hold_the_teachers_tokens_and_the_datas_labels(
    dataset, tiny_denoiser, server, algorithm
):
    mask = tiny_denoiser.info.mask_token_id
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=4)
    distill = trajectory_config(states_per_trajectory=0, prompt_fraction=0.25)
    micro_step = MicroStep(1, 1)
    clean, sequence_ids = reader.read(micro_step)
    with TeacherClient(server.address) as client:
        teacher = new_teacher(client, algorithm=algorithm)
        source = TrajectoryStates(reader=reader, config=TRAIN, distill=distill, teacher=teacher)
        batches = source.states(micro_step)
        start_BL = source._generated(reader.maskable(clean))
        records = teacher.sample(
            unpad(clean.input_ids_BL.masked_fill(start_BL, mask), clean.lengths_B),
            frozen=unpad(~start_BL, clean.lengths_B),
            sequence_ids=sequence_ids,
            seed=TRAIN.seed,
            steps=range(0, NUM_STEPS, 2),
        )

    assert all(len(batch.lengths_B) <= 4 for batch in batches)
    rows = [row for batch in batches for row in rows_of(batch)]
    assert len(rows) == len(records) > len(sequence_ids)
    by_sequence = dict(zip(sequence_ids, unpad(clean.input_ids_BL, clean.lengths_B), strict=True))
    num_generated = dict(zip(sequence_ids, start_BL.sum(-1).tolist(), strict=True))
    generated = dict(zip(sequence_ids, unpad(start_BL, clean.lengths_B), strict=True))
    for (ids, positions, labels, t, size), record in zip(rows, records, strict=True):
        assert record.state is not None
        truth = by_sequence[record.sequence_id]
        assert ids == record.state.tolist()
        assert (
            positions == record.positions.tolist() == np.flatnonzero(record.state == mask).tolist()
        )
        assert labels == truth[positions].tolist()
        assert t == pytest.approx(record.time) and size == num_generated[record.sequence_id]
        # What was given is the data's; nothing else was ever touched.
        assert np.array_equal(
            record.state[~generated[record.sequence_id]], truth[~generated[record.sequence_id]]
        )
    assert {record.step for record in records} <= set(range(0, NUM_STEPS, 2))
    assert len({record.step for record in records}) > 5


def test_the_given_share_is_the_front_of_what_could_be_masked(dataset, tiny_denoiser):
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=8)
    clean, _ = reader.read(MicroStep(0, 0))
    maskable_BL = reader.maskable(clean)
    for fraction in (0.0, 0.5, 0.99):
        source = TrajectoryStates(
            reader=reader,
            config=TRAIN,
            distill=trajectory_config(prompt_fraction=fraction),
            teacher=None,  # type: ignore[arg-type]
        )
        generated_BL = source._generated(maskable_BL)
        for maskable_L, generated_L in zip(maskable_BL, generated_BL, strict=True):
            positions = np.flatnonzero(maskable_L)
            given = int(len(positions) * fraction)
            assert np.flatnonzero(generated_L).tolist() == positions[given:].tolist()
            assert generated_L.any()


def test_drawn_steps_are_stratified_and_cover_all_collected_ones(dataset, tiny_denoiser):
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=2)
    source = TrajectoryStates(
        reader=reader,
        config=TRAIN,
        distill=trajectory_config(states_per_trajectory=2),
        teacher=None,  # type: ignore[arg-type]
    )
    drawn = collections.Counter[int]()
    for micro_step in reader.micro_steps(0, 100):
        low, high = source.collected_steps(micro_step)
        # One of each half of the ten collected steps.
        assert low < 10 <= high
        drawn.update([low, high])
    assert sorted(drawn) == list(range(0, NUM_STEPS, 2))
    # 80 expected of each of the 10; the deviation is sqrt(400 * 0.2 * 0.8) = 8.
    assert all(abs(count - 80) < 4 * 8 for count in drawn.values())


@pytest.mark.parametrize(
    ("wanted", "steps"), [(0, range(0, 20, 2)), (10, range(0, 20, 2)), (99, range(0, 20, 2))]
)
def test_all_collected_steps_are_asked_for_where_no_fewer_are_wanted(
    dataset, tiny_denoiser, wanted, steps
):
    source = TrajectoryStates(
        reader=new_reader(dataset, tiny_denoiser, micro_batch_size=2),
        config=TRAIN,
        distill=trajectory_config(states_per_trajectory=wanted),
        teacher=None,  # type: ignore[arg-type]
    )
    assert source.collected_steps(MicroStep(0, 0)) == list(steps)


def test_ranks_and_accumulation_steps_draw_the_same_trajectories(dataset, tiny_denoiser, server):
    distill = trajectory_config(states_per_trajectory=2)
    with TeacherClient(server.address) as client:
        teacher = new_teacher(client)

        def rows(rank: int, world_size: int) -> list[tuple[object, ...]]:
            reader = new_reader(
                dataset, tiny_denoiser, micro_batch_size=4, rank=rank, world_size=world_size
            )
            source = TrajectoryStates(reader=reader, config=TRAIN, distill=distill, teacher=teacher)
            return [
                row
                for micro_step in reader.micro_steps(3, 4)
                for batch in source.states(micro_step)
                for row in rows_of(batch)
            ]

        assert rows(0, 2) + rows(1, 2) == rows(0, 1)


def test_trajectories_that_end_before_the_drawn_steps_give_their_first_state(
    dataset, tiny_denoiser, server
):
    # Nearly all is given, so a few steps do; the steps drawn are the last of many.
    distill = trajectory_config(states_per_trajectory=1, prompt_fraction=0.97)
    reader = new_reader(dataset, tiny_denoiser, micro_batch_size=4)
    with TeacherClient(server.address) as client:
        source = TrajectoryStates(
            reader=reader, config=TRAIN, distill=distill, teacher=new_teacher(client)
        )
        for step in range(10):
            batches = source.states(MicroStep(step, 0))
            assert batches and all(batch.num_masked for batch in batches)
