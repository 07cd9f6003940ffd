"""Multinomial diffusion, end to end: a teacher trained, served, scored, sampled, distilled."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints, sampling, schedule
from masked_diffusion.families import Denoiser
from masked_diffusion.families.mdlm_config import MdlmConfig
from masked_diffusion.samplers import SamplerConfig
from protos import codec, errors
from protos import teacher_pb2 as pb
from student_trainer import train, wire
from student_trainer.client import TeacherClient
from student_trainer.data import TokenizedDataset, load_dataset
from student_trainer.evaluation.agreement import kl_to_teacher
from student_trainer.evaluation.likelihood import nelbo
from student_trainer.evaluation.states import held_out_states
from student_trainer.targets import to_tensor
from tests import training
from tests.servers import RunningServer, serve
from tests.teacher_server import calls

LOGITS = wire.TargetSpec(encoding="logits")
SAMPLER = wire.SamplerSpec(algorithm="multinomial", num_steps=6, temperature=1.0)
START_LENGTH, NUM_GIVEN = 12, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def taught(
    data: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    """A time-conditioned DiT of uniform noise, trained on the data alone; its metrics."""
    folder = tmp_path_factory.mktemp("teacher")
    config = MdlmConfig(
        vocab_size=len(tiny_tokenizer),
        mask_token_id=tiny_tokenizer.mask_token_id,
        noise="uniform",
        time_conditioning=True,
        model_length=64,
        hidden_dim=32,
        cond_dim=16,
        n_blocks=2,
        n_heads=2,
        dropout=0.0,
    )
    config.save_pretrained(folder / "config")
    tiny_tokenizer.save_pretrained(folder / "config")
    settings = {
        "model.config_path": folder / "config",
        "distill.distillation_alpha": 0,
        "train.loss_weighting": "none",
        "train.max_steps": 60,
        "train.lr": 2e-2,
    }
    metrics = training.run(training.arguments(folder / "run", data, settings))
    return folder / "run" / "hf_ckpt", metrics


@pytest.fixture(scope="module")
def teacher(taught: tuple[Path, list[dict[str, float]]]) -> Denoiser:
    return checkpoints.load_denoiser(str(taught[0]))


@pytest.fixture(scope="module")
def server(teacher: Denoiser) -> Iterator[RunningServer]:
    with serve(teacher) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[TeacherClient]:
    with TeacherClient([server.address]) as connected:
        yield connected


@pytest.fixture(scope="module")
def dataset(data: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> TokenizedDataset:
    return load_dataset(
        str(data),
        text_keys=["text"],
        tokenizer=tiny_tokenizer,
        max_seq_len=64,
        min_chunk_tokens=8,
    )


def _mean(metrics: list[dict[str, float]], name: str) -> float:
    return sum(step[name] for step in metrics) / len(metrics)


def _starts(teacher: Denoiser, dataset: TokenizedDataset) -> list[np.ndarray]:
    """Two starts of data, the rest of which is asked for."""
    starts = [dataset.sequence(index)[:START_LENGTH].copy() for index in (0, 1)]
    for start in starts:
        start[NUM_GIVEN:] = teacher.info.mask_token_id
    return starts


def test_the_teacher_learns_from_noisy_data(
    taught: tuple[Path, list[dict[str, float]]], teacher: Denoiser
) -> None:
    metrics = taught[1]
    assert _mean(metrics[-10:], "ce") < 0.8 * _mean(metrics[:5], "ce")
    assert teacher.info.noise == "uniform"
    assert teacher.info.uses_time


def test_the_server_tells_its_noise_and_offers_what_samples_from_it(
    client: TeacherClient,
) -> None:
    told = client.describe()
    assert told.noise == "uniform"
    assert told.uses_time
    assert told.algorithms == ("multinomial",)


@torch.no_grad()
def test_scores_are_those_of_the_model_at_each_states_own_time(
    teacher: Denoiser, client: TeacherClient, dataset: TokenizedDataset
) -> None:
    states = [dataset.sequence(index) for index in (0, 1, 2)]
    times, positions = [0.1, 0.5, 0.9], [np.array(p) for p in ([1, 2, 5], [3], [2, 4])]
    records = client.score(
        states, sequence_ids=[0, 1, 2], targets=LOGITS, times=times, positions=positions
    )
    for record in records:
        index = record.sequence_id
        assert record.time == pytest.approx(times[index])
        assert record.positions.tolist() == positions[index].tolist()
        hidden_LD = teacher(
            torch.from_numpy(states[index].astype(np.int64))[None],
            times_B=torch.tensor([times[index]]),
        )[0]
        expected_MV = teacher.logits(hidden_LD[positions[index]]).softmax(-1)
        assert isinstance(record.distribution, codec.Logits)
        torch.testing.assert_close(
            to_tensor(record.distribution.values).exp(), expected_MV, atol=1e-6, rtol=1e-4
        )


def test_what_the_server_samples_is_what_the_process_samples(
    teacher: Denoiser, client: TeacherClient, dataset: TokenizedDataset
) -> None:
    starts = _starts(teacher, dataset)
    items = list(
        client.sample(
            starts,
            sequence_ids=[7, 8],
            seeds=[3, 3],
            sampler=SAMPLER,
            capture=wire.CaptureSpec(every_n_steps=1),
            targets=LOGITS,
        )
    )
    ends = {item.sequence_id: item for item in items if isinstance(item, wire.Trajectory)}
    records = [item for item in items if isinstance(item, codec.StepTargets)]
    x_BL = torch.from_numpy(np.stack(starts).astype(np.int64))
    expected = sampling.sample(
        teacher,
        x_BL,
        frozen_BL=x_BL != teacher.info.mask_token_id,
        lengths_B=torch.tensor([START_LENGTH] * 2),
        config=SamplerConfig(algorithm="multinomial", num_steps=6, temperature=1.0),
        seeds=[3, 3],
        sequence_ids=[7, 8],
    )
    for row, name in enumerate((7, 8)):
        assert ends[name].token_ids_L.tolist() == expected.x[row].tolist()
        assert ends[name].unmask_steps_L.tolist() == expected.unmask_steps_BL[row].tolist()
        assert ends[name].num_forwards == ends[name].num_steps == 6
        assert ends[name].token_ids_L[:NUM_GIVEN].tolist() == starts[row][:NUM_GIVEN].tolist()
    times = schedule.timesteps(6).tolist()
    for record in records:
        assert record.time == pytest.approx(times[record.step])
        assert record.positions.tolist() == list(range(NUM_GIVEN, START_LENGTH))
        assert record.state is not None
        assert teacher.info.mask_token_id not in record.state, "the mask is neither noise nor drawn"
    assert {record.step for record in records if record.sequence_id == 7} >= {0, 1}


def test_a_start_state_may_be_noisy_already(
    teacher: Denoiser, client: TeacherClient, dataset: TokenizedDataset
) -> None:
    start = dataset.sequence(0)[:START_LENGTH].copy()
    frozen = np.arange(START_LENGTH) < NUM_GIVEN
    (record,) = (
        item
        for item in client.sample(
            [start],
            sequence_ids=[0],
            seeds=[0],
            sampler=SAMPLER,
            capture=wire.CaptureSpec(steps=(0,)),
            targets=LOGITS,
            frozen=[frozen],
        )
        if isinstance(item, codec.StepTargets)
    )
    assert record.state is not None
    assert record.state.tolist() == start.tolist()


def test_what_a_uniform_teacher_must_be_told_is_asked_for_by_name(
    teacher: Denoiser, client: TeacherClient, dataset: TokenizedDataset
) -> None:
    state, positions = dataset.sequence(0), [np.array([2])]
    masked = state.copy()
    masked[2] = teacher.info.mask_token_id
    cases = [
        ("times must be given", state, None, positions),
        ("positions must be given", state, [0.5], None),
        ("times must be in", state, [1.5], positions),
        ("which a teacher of uniform noise never sees", masked, [0.5], positions),
    ]
    for message, ids, times, chosen in cases:
        with pytest.raises(errors.InvalidRequestError, match=message):
            list(
                client.score([ids], sequence_ids=[0], targets=LOGITS, times=times, positions=chosen)
            )
    with pytest.raises(errors.NotOfferedError, match="ALGORITHM_P2 is not offered"):
        list(
            client.sample(
                _starts(teacher, dataset),
                sequence_ids=[0, 1],
                seeds=[0, 0],
                sampler=wire.SamplerSpec(algorithm="p2", num_steps=2),
                capture=wire.CaptureSpec(),
                targets=LOGITS,
            )
        )
    with pytest.raises(errors.InvalidRequestError, match="never sees"):
        list(
            client.sample(
                [masked],
                sequence_ids=[0],
                seeds=[0],
                sampler=SAMPLER,
                capture=wire.CaptureSpec(),
                targets=LOGITS,
                frozen=[np.ones(len(masked), dtype=bool)],
            )
        )


def test_an_absorbing_teacher_does_not_offer_the_uniform_sampler(
    tiny_denoiser: Denoiser,
) -> None:
    with serve(tiny_denoiser) as running, calls.connect(running.address) as stub:
        told = stub.DescribeTeacher(pb.DescribeTeacherRequest(), timeout=calls.TIMEOUT_S)
        assert pb.ALGORITHM_MULTINOMIAL not in told.algorithms
        assert told.noise == pb.NOISE_ABSORBING
    with pytest.raises(ValueError, match="for absorbing noise, got 'multinomial'"):
        sampling.sample(
            tiny_denoiser,
            torch.zeros(1, 3, dtype=torch.int64),
            frozen_BL=torch.zeros(1, 3, dtype=torch.bool),
            lengths_B=torch.tensor([3]),
            config=SamplerConfig(algorithm="multinomial", num_steps=1),
            seeds=[0],
            sequence_ids=[0],
        )


def _student(server: RunningServer, teacher: Denoiser) -> dict[str, object]:
    return {
        "model.config_overrides": {"n_blocks": 1},
        "distill.teacher_address": server.address,
        "distill.teacher_model_path": teacher.info.name,
        "train.loss_weighting": "none",
        "train.lr": 1e-2,
    }


def test_a_smaller_student_comes_closer_to_its_teacher(
    teacher: Denoiser,
    server: RunningServer,
    data: Path,
    dataset: TokenizedDataset,
    tmp_path: Path,
) -> None:
    settings = _student(server, teacher) | {"train.max_steps": 30}
    metrics = training.run(training.arguments(tmp_path, data, settings))
    assert all(step["kd"] > 0 and step["ce"] > 0 for step in metrics)
    assert _mean(metrics[-6:], "kd") < 0.8 * _mean(metrics[:3], "kd")

    student = checkpoints.load_denoiser(str(tmp_path / "hf_ckpt"))
    assert student.info.noise == "uniform"
    states = held_out_states(dataset, denoiser_info=teacher.info, num_sequences=8, seed=0)
    assert not bool((states.xt_BL == teacher.info.mask_token_id).any())
    assert kl_to_teacher(teacher, student, states, batch_size=4).overall.kl_nats > 0
    assert kl_to_teacher(teacher, teacher, states, batch_size=4).overall.kl_nats == 0
    with pytest.raises(ValueError, match="holds for masks only"):
        nelbo(student, states, batch_size=4)


def test_a_student_learns_on_the_teachers_own_trajectories_without_labels(
    teacher: Denoiser, server: RunningServer, data: Path, tmp_path: Path
) -> None:
    settings = _student(server, teacher) | {
        "distill.state_source": "trajectory",
        "distill.diffusion_sampling_alg": "multinomial",
        "distill.diffusion_temperature": 1.0,
        "distill.num_sampling_steps": 4,
        "distill.distillation_alpha": 1.0,
        "train.max_steps": 3,
    }
    metrics = training.run(training.arguments(tmp_path, data, settings))
    assert all(step["kd"] > 0 and step["ce"] == 0 for step in metrics)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train.loss_weighting": "inv_t"}, "set train.loss_weighting=none"),
        (
            {"distill.state_source": "trajectory"},
            "with uniform noise every token of such a state may be the teacher's own",
        ),
        (
            {"model.config_overrides": {"n_blocks": 1, "noise": "absorbing"}},
            "differ in noise",
        ),
    ],
)
def test_what_means_nothing_with_uniform_noise_is_refused(  # noqa: PLR0917
    more: dict[str, object],
    message: str,
    teacher: Denoiser,
    server: RunningServer,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = _student(server, teacher) | {
        "distill.diffusion_sampling_alg": "multinomial",
        "distill.init_student_from_teacher": False,
    }
    command = training.arguments(tmp_path, data, settings | more)
    assert train.main(command) == train.EXIT_FAILED
    assert message in capsys.readouterr().err
