"""Block-causal teacher and student end to end: both see the earlier blocks clean."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from student_trainer import losses, wire
from student_trainer.batches import BatchPlan
from student_trainer.client import TeacherClient
from student_trainer.config import TrainConfig
from student_trainer.data import Chunking, TokenizedDataset, tokenize_documents
from student_trainer.documents import Document
from student_trainer.evaluation.likelihood import nelbo
from student_trainer.evaluation.states import held_out_states
from student_trainer.objective import DistillationObjective
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch
from student_trainer.student import StudentSpec, build_student
from student_trainer.targets import RemoteTeacher
from tests import training
from tests.fixtures.block_diffusion import FIXTURES
from tests.servers import serve

ATOL = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdar")
    FIXTURES[0].build(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Denoiser:
    return load_denoiser(str(folder)).requires_grad_(False)


@pytest.fixture(scope="module")
def dataset(teacher: Denoiser) -> TokenizedDataset:
    documents = [Document(text=text, prompt="", source="s") for text in training.texts(12)]
    assert teacher.tokenizer is not None
    return tokenize_documents(
        documents, teacher.tokenizer, chunking=Chunking(max_seq_len=24, min_chunk_tokens=4)
    )


@pytest.fixture(scope="module")
def batch(teacher: Denoiser, dataset: TokenizedDataset) -> Iterator[StateBatch]:
    with (
        serve(teacher, max_padding_fraction=0.9) as server,
        TeacherClient([server.address]) as client,
    ):
        source = NoisedStates(
            reader=BatchReader(
                dataset=dataset,
                plan=BatchPlan(dataset_size=len(dataset), global_batch_size=4, seed=0),
                micro_batch_size=4,
                rank=0,
                world_size=1,
                info=teacher.info,
            ),
            config=TrainConfig(output_dir="unused", seed=3),
            teacher=RemoteTeacher(client, spec=wire.TargetSpec()),
        )
        assert client.describe().block_length == teacher.info.block_length
        yield source.states(MicroStep(0, 0))[0]


def test_targets_are_the_teachers_with_clean_earlier_blocks(
    teacher: Denoiser, batch: StateBatch
) -> None:
    assert batch.clean_BL is not None and isinstance(batch.targets, losses.HiddenTargets)
    rows = []
    for b, length in enumerate(batch.lengths_B.tolist()):
        hidden_LD = teacher(
            batch.xt_BL[b : b + 1, :length], clean_ids_BL=batch.clean_BL[b : b + 1, :length]
        )[0]
        rows.append(hidden_LD[batch.loss_BL[b, :length]])
    torch.testing.assert_close(batch.targets.hidden_MD, torch.cat(rows), atol=ATOL, rtol=0)


def test_a_copy_of_the_teacher_has_no_loss_and_a_smaller_student_learns(
    folder: Path, batch: StateBatch
) -> None:
    config = losses.LossConfig(alpha=1.0)
    copy = load_denoiser(str(folder))
    assert abs(DistillationObjective(copy, config)(batch, float(batch.num_masked)).kd) < 1e-6
    spec = StudentSpec(
        teacher_model_path=str(folder),
        config_overrides={"num_hidden_layers": 1},
        init_from_teacher=True,
    )
    student = build_student(spec, device="cpu", dtype=None)
    assert student.info.attention == "block_causal" and student.info.block_length == 4
    objective = DistillationObjective(student, config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    kds = []
    for _ in range(12):
        result = objective(batch, float(batch.num_masked))
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        kds.append(result.kd)
    assert kds[-1] < 0.5 * kds[0]


def test_a_block_model_is_evaluated_with_clean_earlier_blocks(
    teacher: Denoiser, dataset: TokenizedDataset
) -> None:
    states = held_out_states(dataset, denoiser_info=teacher.info, num_sequences=3, seed=0)
    expected = []
    for n in range(3):
        length = int(states.lengths_B[n])
        x0_L, masked_L = states.x0_BL[n, :length], states.masked_BL[n, :length]
        hidden_LD = teacher(states.xt_BL[n : n + 1, :length], clean_ids_BL=x0_L[None])[0]
        log_probs = teacher.logits(hidden_LD[masked_L]).double().log_softmax(-1)
        expected.append(float(-log_probs.gather(1, x0_L[masked_L][:, None]).mean()))
    found = nelbo(teacher, states, batch_size=2).per_sequence
    np.testing.assert_allclose(found, expected, rtol=1e-4)
