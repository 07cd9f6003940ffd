"""Targets as the loss takes them, and the teacher behind the network that gives them."""

import numpy as np
import pytest
import torch

from protos import codec, errors
from student_trainer import losses, wire
from student_trainer.client import TeacherClient
from student_trainer.targets import RemoteTeacher, to_loss_targets, to_tensor
from teacher_server.grpc_service import TeacherServicer
from tests.servers import serve
from tests.teacher_server.calls import hidden_of, make_state

LENGTHS = (30, 12, 55)
SAMPLER = wire.SamplerSpec(algorithm="entropy", num_steps=6)


def record(distribution: codec.Distribution, num_positions: int) -> codec.StepTargets:
    state = np.zeros(num_positions, dtype=np.int32)
    return codec.StepTargets(
        sequence_id=0,
        step=0,
        time=0.5,
        revision="r",
        tokenizer_fingerprint="f",
        state=state,
        state_digest=codec.state_digest(state),
        unmask_steps=None,
        num_forwards=1,
        positions=np.arange(num_positions, dtype=np.int32),
        distribution=distribution,
    )


def values(array: np.ndarray, dtype: str = "f32") -> codec.Values:
    return codec.Values(dtype=dtype, data=array)  # type: ignore[arg-type]


def top_k_record(rows: list[dict[int, float]], temperatures: list[float]) -> codec.StepTargets:
    """Each row by id; normalisers and tails are numbers that tell their place."""
    counts = [len(row) for row in rows]
    places = np.arange(len(temperatures) * len(rows), dtype=np.float32)
    shape = (len(temperatures), len(rows))
    distribution = codec.TopK(
        row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        token_ids=np.array([token for row in rows for token in row], dtype=np.int32),
        log_probs=values(
            np.array([p for row in rows for p in row.values()], dtype=np.float16), "f16"
        ),
        temperatures=np.array(temperatures, dtype=np.float32),
        log_normalizers=places.reshape(shape),
        tail_log_masses=-places.reshape(shape),
    )
    return record(distribution, len(rows))


@pytest.fixture(scope="module")
def states(tiny_denoiser):
    return [
        make_state(tiny_denoiser.info, length=length, num_masked=length // 2, seed=seed)
        for seed, length in enumerate(LENGTHS)
    ]


# As the loss takes them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype", "torch_dtype"),
    [
        ("f32", "<f4", torch.float32),
        ("f16", "<f2", torch.float16),
        ("bf16", "<u2", torch.bfloat16),
    ],
)
def test_wire_numbers_become_a_tensor_of_their_own(dtype, numpy_dtype, torch_dtype):
    numbers = torch.tensor([1.5, -2.0, 0.0], dtype=torch_dtype)
    bits = numbers.view(torch.uint16) if dtype == "bf16" else numbers
    data = np.frombuffer(bits.numpy().tobytes(), dtype=numpy_dtype)

    tensor = to_tensor(values(data, dtype))

    assert tensor.dtype == torch_dtype
    assert tensor.tolist() == [1.5, -2.0, 0.0]
    tensor += 1  # what came from the wire is read-only; this is not it
    assert to_tensor(values(data, dtype)).tolist() == [1.5, -2.0, 0.0]


def test_hidden_states_of_records_follow_each_other():
    first, second = np.ones((2, 3), np.float32), np.full((1, 3), 7, np.float32)
    head = losses.TeacherHead(torch.zeros(5, 3))

    targets = to_loss_targets(
        [record(codec.Hidden(values=values(rows)), len(rows)) for rows in (first, second)],
        head=head,
        temperature=1.0,
    )

    assert isinstance(targets, losses.HiddenTargets)
    assert targets.head is head
    assert targets.hidden_MD.tolist() == [[1, 1, 1], [1, 1, 1], [7, 7, 7]]


def test_hidden_states_without_a_head_are_refused():
    rows = record(codec.Hidden(values=values(np.ones((1, 3), np.float32))), 1)
    with pytest.raises(ValueError, match="need the teacher's head"):
        to_loss_targets([rows], head=None, temperature=1.0)


def test_logits_are_widened():
    rows = record(codec.Logits(values=values(np.ones((2, 4), np.float16), "f16")), 2)
    targets = to_loss_targets([rows], head=None, temperature=1.0)
    assert isinstance(targets, losses.LogitsTargets)
    assert targets.logits_MV.dtype == torch.float32
    assert targets.logits_MV.shape == (2, 4)


def test_ragged_rows_are_padded_and_the_temperature_is_looked_up():
    records = [
        top_k_record([{3: -0.5, 9: -1.5}, {}], [1.0, 2.0]),
        top_k_record([{1: -1.0, 2: -2.0, 5: -3.0}], [1.0, 2.0]),
    ]

    targets = to_loss_targets(records, head=None, temperature=2.0)

    assert isinstance(targets, losses.TopKTargets)
    assert targets.valid_MK.tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]
    assert targets.token_ids_MK[targets.valid_MK].tolist() == [3, 9, 1, 2, 5]
    assert targets.log_probs_MK[targets.valid_MK].tolist() == [-0.5, -1.5, -1.0, -2.0, -3.0]
    assert targets.log_normalizer_M.tolist() == [2.0, 3.0, 1.0]
    assert targets.tail_log_mass_M.tolist() == [-2.0, -3.0, -1.0]


def test_a_temperature_that_was_not_asked_for_is_refused():
    with pytest.raises(ValueError, match=r"hold temperatures \[1.0\], not 3.0"):
        to_loss_targets([top_k_record([{3: -0.5}], [1.0])], head=None, temperature=3.0)


def test_records_of_two_encodings_are_refused():
    rows = record(codec.Logits(values=values(np.ones((1, 4), np.float32))), 1)
    with pytest.raises(ValueError, match=r"share one encoding, got \['Logits', 'TopK'\]"):
        to_loss_targets([rows, top_k_record([{3: -0.5}], [1.0])], head=None, temperature=1.0)
    with pytest.raises(ValueError, match=r"share one encoding, got \[\]"):
        to_loss_targets([], head=None, temperature=1.0)


# The teacher behind the network ------------------------------------------------------------------


def test_scores_come_in_the_order_of_the_states(tiny_denoiser, states):
    # One row a step, and the server takes them in its own order: the longest does not wait.
    with (
        serve(tiny_denoiser, max_batch_tokens=64) as server,
        TeacherClient(server.address) as client,
    ):
        teacher = RemoteTeacher(client, spec=wire.TargetSpec(encoding="hidden"))
        records = teacher.score(states, sequence_ids=[30, 10, 20])
        targets = teacher.to_loss_targets(records)
        counters = teacher.counters

    assert [record.sequence_id for record in records] == [30, 10, 20]
    masked = [np.flatnonzero(ids == tiny_denoiser.info.mask_token_id) for ids in states]
    expected = np.concatenate(
        [hidden_of(tiny_denoiser, ids)[rows] for ids, rows in zip(states, masked, strict=True)]
    )
    assert isinstance(targets, losses.HiddenTargets)
    # Float32 through two layers, in another batch.
    np.testing.assert_allclose(targets.hidden_MD.numpy(), expected, rtol=1e-4, atol=1e-5)
    vocab_size = tiny_denoiser.info.vocab_size
    assert isinstance(targets.head, losses.TeacherHead)
    assert torch.equal(targets.head.weight_VD, tiny_denoiser.head_weight[:vocab_size])
    assert counters.num_retries == 0
    assert counters.num_bytes > expected.nbytes


def test_trajectories_come_by_sequence_and_then_by_step(tiny_denoiser, states):
    with serve(tiny_denoiser) as server, TeacherClient(server.address) as client:
        teacher = RemoteTeacher(
            client, spec=wire.TargetSpec(encoding="top_k", top_k=4), sampler=SAMPLER
        )
        records = teacher.sample(
            states,
            frozen=[ids != tiny_denoiser.info.mask_token_id for ids in states],
            sequence_ids=[30, 10, 20],
            seed=5,
            steps=[4, 0, 2],
        )
    assert [(record.sequence_id, record.step) for record in records] == [
        (sequence_id, step) for sequence_id in (30, 10, 20) for step in (0, 2, 4)
    ]
    for index, item in enumerate(records[::3]):
        assert item.state is not None and np.array_equal(item.state, states[index])


def test_an_encoding_that_is_not_offered_is_refused(tiny_denoiser, monkeypatch):
    class HiddenOnly(TeacherServicer):
        async def DescribeTeacher(self, request, context):  # noqa: N802
            description = await super().DescribeTeacher(request, context)
            del description.encodings[1:]
            return description

    monkeypatch.setattr("teacher_server.server.TeacherServicer", HiddenOnly)
    with (
        serve(tiny_denoiser) as server,
        TeacherClient(server.address) as client,
        pytest.raises(errors.NotOfferedError, match="'logits' is not offered"),
    ):
        RemoteTeacher(client, spec=wire.TargetSpec(encoding="logits"))


def test_closing_the_teacher_closes_its_client(tiny_denoiser, states):
    with serve(tiny_denoiser) as server, TeacherClient(server.address) as client:
        teacher = RemoteTeacher(client, spec=wire.TargetSpec(encoding="logits"))
        teacher.close()
        with pytest.raises(errors.CancelledError):
            teacher.score(states, sequence_ids=range(3))


def test_every_encoding_of_the_same_states_is_the_same_distribution(tiny_denoiser, states):
    info = tiny_denoiser.info
    vocabulary = losses.Vocabulary(vocab_size=info.vocab_size, mask_token_id=info.mask_token_id)
    found = {}
    with serve(tiny_denoiser) as server, TeacherClient(server.address) as client:
        for encoding in ("hidden", "logits", "top_k"):
            spec = wire.TargetSpec(
                encoding=encoding, dtype="f32", top_k=info.vocab_size, temperatures=(2.0,)
            )
            teacher = RemoteTeacher(client, spec=spec)
            targets = teacher.to_loss_targets(teacher.score(states, sequence_ids=range(3)))
            student_MV = torch.zeros(targets.num_positions, info.vocab_size)
            rows = slice(0, targets.num_positions)
            log_probs, _ = targets.log_probs(
                rows, student_MV, vocabulary=vocabulary, temperature=2.0
            )
            found[encoding] = log_probs.exp()
    torch.testing.assert_close(found["hidden"], found["logits"], rtol=1e-4, atol=1e-6)
    # With all ids kept the buckets are the ids but the mask, then the empty tail.
    support = [token for token in range(info.vocab_size) if token != info.mask_token_id]
    kept = found["top_k"][:, : len(support)]
    torch.testing.assert_close(kept, found["logits"][:, support], rtol=1e-4, atol=1e-6)
