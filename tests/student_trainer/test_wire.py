"""What the client asks and what it is told, as messages."""

import dataclasses

import numpy as np
import pytest

from masked_diffusion.samplers import SAMPLERS
from protos import teacher_pb2 as pb
from student_trainer import wire


def test_fields_of_top_k_stay_empty_for_other_encodings():
    spec = wire.TargetSpec(encoding="top_k", dtype="f32", top_k=7, top_p=0.5, temperatures=(2.0,))

    message = spec.to_message()
    hidden = dataclasses.replace(spec, encoding="hidden").to_message()

    assert message == pb.TargetSpec(
        encoding=pb.ENCODING_TOP_K,
        dtype=pb.VALUE_DTYPE_F32,
        top_k=7,
        top_p=0.5,
        temperatures=[2.0],
    )
    assert hidden == pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_F32)


def test_auto_leaves_the_number_format_to_the_teacher():
    assert wire.TargetSpec(encoding="logits").to_message() == pb.TargetSpec(
        encoding=pb.ENCODING_LOGITS
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_has_its_value_in_the_contract(name):
    message = wire.SamplerSpec(algorithm=name, num_steps=3, alg_temp=0.5).to_message()
    assert pb.Algorithm.Name(message.algorithm) == f"ALGORITHM_{name.upper()}"
    assert (message.num_steps, message.alg_temp) == (3, 0.5)


def test_an_algorithm_outside_the_contract_is_left_to_the_server_to_refuse():
    message = wire.SamplerSpec(algorithm="magic", num_steps=3).to_message()
    assert message.algorithm == pb.ALGORITHM_UNSPECIFIED


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (wire.CaptureSpec(), pb.Capture(kind=pb.CAPTURE_KIND_NONE)),
        (
            wire.CaptureSpec(every_n_steps=4),
            pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=4),
        ),
        (
            wire.CaptureSpec(steps=(0, 9)),
            pb.Capture(kind=pb.CAPTURE_KIND_STEPS, steps=[0, 9]),
        ),
    ],
)
def test_a_capture_is_of_one_kind(spec, message):
    assert spec.to_message() == message


def test_what_a_newer_server_offers_beyond_this_client_is_left_out():
    message = pb.DescribeTeacherResponse(
        encodings=[pb.ENCODING_LOGITS, 99, pb.ENCODING_GATHER],  # type: ignore[list-item]
        algorithms=[pb.ALGORITHM_P2, 99],  # type: ignore[list-item]
        limits=pb.Limits(max_sequences=5, max_tokens=6),
    )

    description = wire.TeacherDescription.from_message(message)

    assert description.encodings == ("logits",)
    assert description.algorithms == ("p2",)
    assert (description.max_sequences, description.max_tokens) == (5, 6)


@pytest.mark.parametrize(
    ("dtype", "value_dtype", "numpy_dtype"),
    [
        ("f32", pb.VALUE_DTYPE_F32, "<f4"),
        ("f16", pb.VALUE_DTYPE_F16, "<f2"),
        ("bf16", pb.VALUE_DTYPE_BF16, "<u2"),
    ],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_head_is_cut_into_weight_and_bias(dtype, value_dtype, numpy_dtype, has_bias):
    flat = np.arange(3 * 2 + 3 * has_bias).astype(numpy_dtype)
    spec = pb.HeadSpec(
        digest="d",
        dtype=value_dtype,
        vocab_size=3,
        hidden_size=2,
        has_bias=has_bias,
        logit_scale=2.0,
    )

    head = wire.WireHead.from_bytes(spec, flat.tobytes())

    assert (head.dtype, head.digest, head.logit_scale, head.logit_soft_cap) == (
        dtype,
        "d",
        2.0,
        None,
    )
    assert head.weight_VD.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (head.bias_V is None) == (not has_bias)
    if head.bias_V is not None:
        assert head.bias_V.tolist() == [6, 7, 8]


def test_a_trajectory_record_is_read_whole():
    message = pb.TrajectoryRecord(
        sequence_id=4,
        token_ids=np.array([5, 6], dtype="<i4").tobytes(),
        unmask_steps=np.array([-1, 2], dtype="<i4").tobytes(),
        num_forwards=3,
        num_steps=8,
        revision="r",
    )

    record = wire.Trajectory.from_message(message)

    assert record.token_ids_L.tolist() == [5, 6]
    assert record.unmask_steps_L.tolist() == [-1, 2]
    assert (record.sequence_id, record.num_forwards, record.num_steps, record.revision) == (
        4,
        3,
        8,
        "r",
    )


def test_sequences_travel_ragged():
    message = wire.sequences_message([7, 9], [np.array([1, 2, 3]), np.array([4])])
    assert list(message.sequence_ids) == [7, 9]
    assert list(message.lengths) == [3, 1]
    assert np.frombuffer(message.token_ids, dtype="<i4").tolist() == [1, 2, 3, 4]
