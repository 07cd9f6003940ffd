import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masked_diffusion.families import Denoiser
from protos import codec, parts
from protos import teacher_pb2 as pb
from teacher_server.config import LimitsConfig
from teacher_server.engine.sequence import Outcome
from teacher_server.request_specs import SpecReader
from tests import servers
from tests.teacher_server import calls
from tests.teacher_server.calls import Refusal, collect, connect, refusal

import grpc  # isort: skip  (after protos.channel, which sets gRPC's environment)

NUM_STEPS = 6
LENGTHS = (10, 7)
MAX_SEQUENCES = 8
MAX_TOKENS = 600
MAX_NUM_STEPS = 50
MAX_TEMPERATURES = 3

Stub = Callable[[pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest], calls.Answers]


@pytest.fixture(scope="module")
def running(tiny_denoiser: Denoiser) -> Iterator[servers.RunningServer]:
    with servers.serve(
        tiny_denoiser,
        max_sequences=MAX_SEQUENCES,
        max_tokens=MAX_TOKENS,
        max_num_steps=MAX_NUM_STEPS,
        max_temperatures=MAX_TEMPERATURES,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def send(running: servers.RunningServer) -> Iterator[Stub]:
    """Sends either request and reads all answers."""
    with connect(running.address) as stub:

        def call(request: pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest) -> calls.Answers:
            if isinstance(request, pb.ScoreStatesRequest):
                return collect(stub.ScoreStates(request, timeout=calls.TIMEOUT_S))
            return collect(stub.SampleTrajectories(request, timeout=calls.TIMEOUT_S))

        yield call


def _states(denoiser: Denoiser) -> list[np.ndarray]:
    return [
        calls.make_state(denoiser.info, length=length, num_masked=length // 2, seed=length)
        for length in LENGTHS
    ]


def _score(denoiser: Denoiser) -> pb.ScoreStatesRequest:
    """A valid request with all that can be said."""
    request = calls.score_request(
        _states(denoiser),
        targets=pb.TargetSpec(
            encoding=pb.ENCODING_TOP_K,
            dtype=pb.VALUE_DTYPE_F32,
            top_k=4,
            top_p=0.9,
            temperatures=[1.0, 2.0],
        ),
    )
    request.positions.positions = np.array([1, 3, 9, 2, 6], dtype="<i4").tobytes()
    request.positions.counts.extend([3, 2])
    return request


def _trajectory(denoiser: Denoiser) -> pb.SampleTrajectoriesRequest:
    """A valid request with all that can be said, resumed at steps 2 and 0."""
    starts = _states(denoiser)
    request = calls.trajectory_request(
        starts,
        sampler=pb.SamplerSpec(
            algorithm=pb.ALGORITHM_MASKGIT_PLUS,
            num_steps=NUM_STEPS,
            temperature=0.7,
            top_k=30,
            top_p=0.9,
            alg_temp=0.5,
            eps=0.01,
        ),
        capture=pb.Capture(kind=pb.CAPTURE_KIND_STEPS, steps=[0, 3]),
        targets=pb.TargetSpec(encoding=pb.ENCODING_TOP_K, top_k=4, temperatures=[1.0]),
    )
    flat = np.concatenate(starts)
    request.frozen = (flat != denoiser.info.mask_token_id).astype(np.uint8).tobytes()
    request.resume.start_steps.extend([2, 0])
    request.resume.last_collected_steps.extend([1, -1])
    request.resume.num_forwards.extend([2, 0])
    request.resume.unmask_steps = np.full(len(flat), -1, dtype="<i4").tobytes()
    return request


def _int32(*values: int) -> bytes:
    return np.array(values, dtype="<i4").tobytes()


def _set(path: str, value: object) -> Callable[[object], None]:
    """Sets a field by its path; a list replaces a repeated field."""

    def change(message: object) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, list):
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)

    return change


def _clear(path: str) -> Callable[[object], None]:
    def change(message: object) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        message.ClearField(name)  # type: ignore[attr-defined]

    return change


def _all(*changes: Callable[[object], None]) -> Callable[[object], None]:
    def change(message: object) -> None:
        for one in changes:
            one(message)

    return change


def _invalid(told: Refusal, field: str, *texts: str) -> None:
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (told.reason, told.field) == ("INVALID_REQUEST", field)
    for text in (field, *texts):
        assert text in told.message


# What both kinds of requests share; the sequences are `states` here and `start_states` there.
SEQUENCES: dict[str, tuple[Callable[[object], None], str, tuple[str, ...]]] = {
    "too long": (
        _all(_set("S.lengths", [257, 7]), _set("S.token_ids", _int32(*[5] * 264))),
        "S.lengths",
        ("257 tokens", "maximum is 256", "cut it"),
    ),
    "too many tokens": (
        _all(
            _set("S.sequence_ids", [1, 2, 3]),
            _set("S.lengths", [250, 250, 250]),
            _set("S.token_ids", _int32(*[5] * 750)),
        ),
        "S.lengths",
        ("750 tokens", f"limit {MAX_TOKENS}", "send fewer"),
    ),
    "too many sequences": (
        _set("S.sequence_ids", list(range(9))),
        "S.sequence_ids",
        ("9 sequences", f"limit {MAX_SEQUENCES}", "send fewer"),
    ),
    "duplicate sequence ids": (_set("S.sequence_ids", [4, 4]), "S.sequence_ids", ("unique",)),
    "a length missing": (_set("S.lengths", [10]), "S.lengths", ("1 entries for 2 sequences",)),
    "a length of 0": (_set("S.lengths", [0, 17]), "S.lengths", ("positive", "got 0")),
    "a negative length": (_set("S.lengths", [-3, 20]), "S.lengths", ("positive", "got -3")),
    "an id missing": (
        _set("S.token_ids", _int32(*[5] * 16)),
        "S.token_ids",
        ("64 bytes", "17 numbers of 4 bytes"),
    ),
    "a torn id": (_set("S.token_ids", b"x" * 67), "S.token_ids", ("67 bytes",)),
    "an id above the vocabulary": (
        _set("S.token_ids", _int32(*[5] * 12, 300, *[5] * 4)),
        "S.token_ids",
        ("id 300 at index 12", "[0, 300)", "the teacher's tokenizer"),
    ),
    "a negative id": (
        _set("S.token_ids", _int32(-1, *[5] * 16)),
        "S.token_ids",
        ("id -1 at index 0", "[0, 300)"),
    ),
}


@pytest.mark.parametrize("case", SEQUENCES)
@pytest.mark.parametrize("kind", ["states", "start_states"])
def test_wrong_sequences_are_refused_by_field_value_and_mend(
    kind: str, case: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    request: pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest
    request = _score(tiny_denoiser) if kind == "states" else _trajectory(tiny_denoiser)
    if isinstance(request, pb.SampleTrajectoriesRequest):
        request.ClearField("resume")
    else:
        request.ClearField("positions")
    change, field, texts = SEQUENCES[case]
    message = type("Renamed", (), {"S": getattr(request, kind)})()
    change(message)
    told = refusal(send, request)
    _invalid(told, field.replace("S", kind, 1), *texts)


TARGETS: dict[str, tuple[Callable[[object], None], str, tuple[str, ...]]] = {
    "unknown encoding": (
        _set("targets.encoding", 99),
        "targets.encoding",
        ("got 99", "ENCODING_HIDDEN"),
    ),
    "unknown dtype": (_set("targets.dtype", 77), "targets.dtype", ("got 77", "VALUE_DTYPE_F16")),
    "bf16 log-probabilities": (
        _set("targets.dtype", pb.VALUE_DTYPE_BF16),
        "targets.dtype",
        ("BF16", "use F16 or F32"),
    ),
    "bf16 logits": (
        _all(
            _set("targets.encoding", pb.ENCODING_LOGITS),
            _set("targets.dtype", pb.VALUE_DTYPE_BF16),
        ),
        "targets.dtype",
        ("BF16", "use F16 or F32"),
    ),
    "top_k of 0": (_set("targets.top_k", 0), "targets.top_k", ("[1, 4096]", "got 0")),
    "negative top_k": (_set("targets.top_k", -2), "targets.top_k", ("[1, 4096]", "got -2")),
    "top_k above the limit": (
        _set("targets.top_k", 4097),
        "targets.top_k",
        ("[1, 4096]", "got 4097"),
    ),
    "top_p above 1": (_set("targets.top_p", 1.5), "targets.top_p", ("(0, 1]", "got 1.5")),
    "negative top_p": (_set("targets.top_p", -0.5), "targets.top_p", ("(0, 1]", "got -0.5")),
    "top_p not a number": (_set("targets.top_p", math.nan), "targets.top_p", ("got nan",)),
    "temperature of 0": (
        _set("targets.temperatures", [1.0, 0.0]),
        "targets.temperatures",
        ("at least 1e-06", "got 0"),
    ),
    "negative temperature": (
        _set("targets.temperatures", [-1.0]),
        "targets.temperatures",
        ("got -1",),
    ),
    "tiny temperature": (
        _set("targets.temperatures", [1e-30]),
        "targets.temperatures",
        ("at least 1e-06",),
    ),
    "temperature not a number": (
        _set("targets.temperatures", [math.nan]),
        "targets.temperatures",
        ("got nan",),
    ),
    "infinite temperature": (
        _set("targets.temperatures", [math.inf]),
        "targets.temperatures",
        ("got inf",),
    ),
    "too many temperatures": (
        _set("targets.temperatures", [1.0, 2.0, 3.0, 4.0]),
        "targets.temperatures",
        ("4 entries", "limit 3"),
    ),
}


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("kind", ["score", "trajectory"])
def test_wrong_target_specs_are_refused_by_field_value_and_mend(
    kind: str, case: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    change, field, texts = TARGETS[case]
    request = _score(tiny_denoiser) if kind == "score" else _trajectory(tiny_denoiser)
    change(request)
    _invalid(refusal(send, request), field, *texts)


POSITIONS: dict[str, tuple[Callable[[object], None], str, tuple[str, ...]]] = {
    "a count missing": (
        _set("positions.counts", [5]),
        "positions.counts",
        ("1 entries for 2 sequences",),
    ),
    "negative count": (
        _set("positions.counts", [-1, 6]),
        "positions.counts",
        ("negative", "got -1"),
    ),
    "a position missing": (
        _set("positions.positions", _int32(1, 2, 3, 4)),
        "positions.positions",
        ("16 bytes", "5 numbers of 4 bytes"),
    ),
    "descending": (
        _set("positions.positions", _int32(1, 9, 3, 2, 6)),
        "positions.positions",
        ("ascend", "[1, 9, 3] in sequence 0"),
    ),
    "repeated": (
        _set("positions.positions", _int32(1, 3, 9, 2, 2)),
        "positions.positions",
        ("ascend", "[2, 2] in sequence 1"),
    ),
    "overflowing difference": (
        _set("positions.positions", _int32(2**31 - 1, -(2**31), 5, 2, 6)),
        "positions.positions",
        ("in sequence 0",),
    ),
    "negative": (
        _set("positions.positions", _int32(-4, 3, 9, 2, 6)),
        "positions.positions",
        ("ascend from 0", "-4"),
    ),
    "past the end": (
        _set("positions.positions", _int32(1, 3, 9, 2, 7)),
        "positions.positions",
        ("has 7", "sequence 1 of 7 tokens"),
    ),
    "the position that a shifted teacher cannot predict": (
        _set("positions.positions", _int32(0, 3, 9, 2, 6)),
        "positions.positions",
        ("position 0 of sequence 0", "cannot predict the first 1", "given token"),
    ),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_wrong_positions_are_refused_by_field_value_and_mend(
    case: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    change, field, texts = POSITIONS[case]
    request = _score(tiny_denoiser)
    change(request)
    _invalid(refusal(send, request), field, *texts)


TRAJECTORIES: dict[str, tuple[Callable[[object], None], str, tuple[str, ...]]] = {
    "no algorithm": (
        _set("sampler.algorithm", 0),
        "sampler.algorithm",
        ("got 0", "ALGORITHM_ORIGIN", "ALGORITHM_P2"),
    ),
    "unknown algorithm": (_set("sampler.algorithm", 99), "sampler.algorithm", ("got 99",)),
    "no steps": (_set("sampler.num_steps", 0), "sampler.num_steps", ("[1, 50]", "got 0")),
    "negative steps": (_set("sampler.num_steps", -1), "sampler.num_steps", ("got -1",)),
    "too many steps": (_set("sampler.num_steps", 51), "sampler.num_steps", ("[1, 50]", "got 51")),
    "negative temperature": (
        _set("sampler.temperature", -1.0),
        "sampler.temperature",
        ("at least 1e-06", "got -1"),
    ),
    "temperature not a number": (
        _set("sampler.temperature", math.nan),
        "sampler.temperature",
        ("got nan",),
    ),
    "infinite temperature": (
        _set("sampler.temperature", math.inf),
        "sampler.temperature",
        ("got inf",),
    ),
    "negative top_k": (_set("sampler.top_k", -1), "sampler.top_k", ("got -1",)),
    "top_p above 1": (_set("sampler.top_p", 1.25), "sampler.top_p", ("(0, 1]", "got 1.25")),
    "negative top_p": (_set("sampler.top_p", -0.5), "sampler.top_p", ("got -0.5",)),
    "negative alg_temp": (_set("sampler.alg_temp", -0.5), "sampler.alg_temp", ("got -0.5",)),
    "alg_temp not a number": (_set("sampler.alg_temp", math.nan), "sampler.alg_temp", ("nan",)),
    "eps of 1": (_set("sampler.eps", 1.0), "sampler.eps", ("(0, 1)", "got 1.0")),
    "negative eps": (_set("sampler.eps", -0.5), "sampler.eps", ("(0, 1)", "got -0.5")),
    "unknown capture": (_set("capture.kind", 42), "capture.kind", ("got 42",)),
    "every 0 steps": (
        _all(_set("capture.kind", pb.CAPTURE_KIND_EVERY_N), _set("capture.every_n_steps", 0)),
        "capture.every_n_steps",
        ("at least 1", "got 0"),
    ),
    "a captured step past the end": (
        _set("capture.steps", [0, 6]),
        "capture.steps",
        ("[0, 6)", "got 6"),
    ),
    "a negative captured step": (_set("capture.steps", [-1]), "capture.steps", ("got -1",)),
    "a seed missing": (_set("seeds", [3]), "seeds", ("1 entries for 2 sequences",)),
    "a frozen byte missing": (
        _set("frozen", b"\0" * 16),
        "frozen",
        ("16 bytes for 17 tokens",),
    ),
    "a frozen byte of 2": (_set("frozen", b"\0" * 16 + b"\2"), "frozen", ("0 or 1", "got 2")),
    "resumed without frozen": (_clear("frozen"), "frozen", ("resumed",)),
    "a start step missing": (
        _set("resume.start_steps", [2]),
        "resume.start_steps",
        ("1 entries for 2 sequences",),
    ),
    "a start step past the end": (
        _set("resume.start_steps", [6, 0]),
        "resume.start_steps",
        ("[0, 5]", "got 6"),
    ),
    "a negative start step": (
        _set("resume.start_steps", [2, -1]),
        "resume.start_steps",
        ("[0, 5]", "got -1"),
    ),
    "a last step missing": (
        _set("resume.last_collected_steps", []),
        "resume.last_collected_steps",
        ("0 entries for 2 sequences",),
    ),
    "a last step past the end": (
        _set("resume.last_collected_steps", [1, 6]),
        "resume.last_collected_steps",
        ("[-1, 5]", "got 6"),
    ),
    "a last step below -1": (
        _set("resume.last_collected_steps", [-2, 0]),
        "resume.last_collected_steps",
        ("[-1, 5]", "got -2"),
    ),
    "more forwards than steps": (
        _set("resume.num_forwards", [3, 0]),
        "resume.num_forwards",
        ("[0, 2]", "got 3"),
    ),
    "negative forwards": (
        _set("resume.num_forwards", [0, -1]),
        "resume.num_forwards",
        ("[0, 0]", "got -1"),
    ),
    "forwards missing": (
        _set("resume.num_forwards", []),
        "resume.num_forwards",
        ("0 entries for 2 sequences",),
    ),
    "an unmask step missing": (
        _set("resume.unmask_steps", _int32(*[-1] * 16)),
        "resume.unmask_steps",
        ("64 bytes", "17 numbers of 4 bytes"),
    ),
    "an unmask step that is still to come": (
        _set("resume.unmask_steps", _int32(*[-1] * 9, 2, *[-1] * 7)),
        "resume.unmask_steps",
        ("[-1, 1]", "got 2"),
    ),
    "an unmask step below -1": (
        _set("resume.unmask_steps", _int32(*[-1] * 16, -2)),
        "resume.unmask_steps",
        ("[-1, -1]", "got -2"),
    ),
}


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_wrong_trajectories_are_refused_by_field_value_and_mend(
    case: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    change, field, texts = TRAJECTORIES[case]
    request = _trajectory(tiny_denoiser)
    change(request)
    _invalid(refusal(send, request), field, *texts)


def test_a_shifted_teacher_refuses_a_mask_at_position_0(
    send: Stub, tiny_denoiser: Denoiser
) -> None:
    ids = np.array([tiny_denoiser.info.mask_token_id, 5, 6], dtype=np.int32)
    told = refusal(send, calls.score_request([ids[::-1], ids]))
    _invalid(told, "states.token_ids", "position 0 of sequence 1", "cannot predict the first 1")
    sampler = pb.SamplerSpec(algorithm=pb.ALGORITHM_ORIGIN, num_steps=2)
    told = refusal(send, calls.trajectory_request([ids], sampler=sampler))
    _invalid(told, "start_states.token_ids", "position 0 of sequence 0", "begin sequences with")


def test_a_mask_at_position_0_is_welcome_where_it_is_frozen_or_not_chosen(
    send: Stub, tiny_denoiser: Denoiser
) -> None:
    mask_token_id = tiny_denoiser.info.mask_token_id
    ids = np.array([mask_token_id, 5, mask_token_id], dtype=np.int32)
    request = calls.score_request([ids])
    request.positions.positions = _int32(2)
    request.positions.counts.append(1)
    assert send(request).targets[0].positions.tolist() == [2]
    sampler = pb.SamplerSpec(algorithm=pb.ALGORITHM_P2, num_steps=2)
    trajectory = calls.trajectory_request([ids], sampler=sampler)
    trajectory.frozen = b"\1\1\0"
    final = calls.int32(send(trajectory).trajectories[0].token_ids)
    assert final[0] == mask_token_id != final[2]


def test_p2_refuses_to_draw_position_0_of_a_shifted_teacher_again(
    send: Stub, tiny_denoiser: Denoiser
) -> None:
    ids = np.array([5, 6, tiny_denoiser.info.mask_token_id], dtype=np.int32)
    for algorithm, is_refused in ((pb.ALGORITHM_P2, True), (pb.ALGORITHM_ENTROPY, False)):
        sampler = pb.SamplerSpec(algorithm=algorithm, num_steps=2)
        request = calls.trajectory_request([ids], sampler=sampler)
        request.frozen = b"\0\0\0"
        if is_refused:
            told = refusal(send, request)
            _invalid(told, "start_states.token_ids", "position 0")
        else:
            assert len(send(request).trajectories) == 1


@pytest.mark.parametrize("kind", ["score", "trajectory"])
def test_a_record_larger_than_a_client_reads_is_refused(
    kind: str, send: Stub, tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 chosen positions, and 5 masked ones, of 300 ids of 4 bytes.
    request = _score(tiny_denoiser) if kind == "score" else _trajectory(tiny_denoiser)
    request.targets.encoding = pb.ENCODING_LOGITS
    request.targets.dtype = pb.VALUE_DTYPE_F32
    num_bytes = (3 if kind == "score" else 5) * 300 * 4
    monkeypatch.setattr(parts, "MAX_PAYLOAD_BYTES", num_bytes - 1)
    told = refusal(send, request)
    _invalid(told, "targets.encoding", f"{num_bytes} bytes", "use HIDDEN or TOP_K")
    monkeypatch.setattr(parts, "MAX_PAYLOAD_BYTES", num_bytes)
    send(request)


@pytest.mark.parametrize(
    ("targets", "atol_bytes"),
    [
        (pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_BF16), 0),
        (pb.TargetSpec(encoding=pb.ENCODING_LOGITS, dtype=pb.VALUE_DTYPE_F16), 0),
        (pb.TargetSpec(encoding=pb.ENCODING_TOP_K, top_k=5, temperatures=[1.0, 2.0]), 8),
        (pb.TargetSpec(encoding=pb.ENCODING_TOP_K, top_k=4000), 10_000),
    ],
)
def test_the_bytes_of_a_record_are_known_before_it_is_made(
    targets: pb.TargetSpec, atol_bytes: int, send: Stub, tiny_denoiser: Denoiser
) -> None:
    """At most so many, and not many fewer: offsets start with a 0, the mask id is never kept."""
    reader = SpecReader(tiny_denoiser.info, LimitsConfig(), model_dtype="f32")
    (state, _) = _states(tiny_denoiser)
    (record,) = send(calls.score_request([state], targets=targets)).targets
    distribution = record.distribution
    if isinstance(distribution, codec.TopK):
        arrays = [
            distribution.row_offsets[1:],
            distribution.token_ids,
            distribution.log_probs.data,
            distribution.log_normalizers,
            distribution.tail_log_masses,
        ]
    else:
        arrays = [distribution.values.data]
    num_bytes = sum(array.nbytes for array in arrays)
    expected = reader.targets(targets).bytes_per_position * len(record.positions)
    assert expected - atol_bytes <= num_bytes <= expected


NOT_OFFERED = {
    "ENCODING_SAMPLED": (_set("targets.encoding", pb.ENCODING_SAMPLED), "targets.encoding"),
    "ENCODING_GATHER": (_set("targets.encoding", pb.ENCODING_GATHER), "targets.encoding"),
    "CAPTURE_KIND_AT_UNMASK": (
        _set("capture.kind", pb.CAPTURE_KIND_AT_UNMASK),
        "capture.kind",
    ),
    "CAPTURE_KIND_MEAN_PROBABILITY": (
        _set("capture.kind", pb.CAPTURE_KIND_MEAN_PROBABILITY),
        "capture.kind",
    ),
    "CAPTURE_KIND_ADAPTIVE": (
        _set("capture.kind", pb.CAPTURE_KIND_ADAPTIVE),
        "capture.kind",
    ),
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_declared_but_not_built_is_unimplemented(
    name: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    change, field = NOT_OFFERED[name]
    request = _trajectory(tiny_denoiser)
    change(request)
    told = refusal(send, request)
    assert told.code is grpc.StatusCode.UNIMPLEMENTED
    assert (told.reason, told.field) == ("NOT_OFFERED", field)
    assert f"{field} {name} is not offered" in told.message
    assert "offered: " in told.message


EXPECTED_REASONS = {
    "expected_revision": "REVISION_MISMATCH",
    "expected_tokenizer_fingerprint": "TOKENIZER_MISMATCH",
}


@pytest.mark.parametrize("kind", ["score", "trajectory"])
@pytest.mark.parametrize("name", EXPECTED_REASONS)
# However long what was expected is, the answer fits into HTTP/2 headers.
@pytest.mark.parametrize("expected", ["abc", "x" * 100_000, "\n\u00fc" * 1000])
def test_other_weights_or_another_tokenizer_than_expected_are_a_failed_precondition(
    expected: str, name: str, kind: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    request = _score(tiny_denoiser) if kind == "score" else _trajectory(tiny_denoiser)
    setattr(request.context, name, expected)
    told = refusal(send, request)
    assert told.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (told.reason, told.field) == (EXPECTED_REASONS[name], f"context.{name}")
    assert expected[:3].encode("unicode_escape").decode() in told.message
    assert "served is" in told.message


def test_what_is_expected_and_served_is_welcome(send: Stub, tiny_denoiser: Denoiser) -> None:
    request = _score(tiny_denoiser)
    (record, _) = send(request).targets
    request.context.expected_revision = record.revision
    request.context.expected_tokenizer_fingerprint = record.tokenizer_fingerprint
    assert len(send(request).targets) == 2


@pytest.mark.parametrize("name", ["request_id", "client_id", "cohort.run_id"])
@pytest.mark.parametrize("text", ["two words", "line\nbreak", "x" * 201])
def test_names_that_would_break_a_log_line_are_refused(
    text: str, name: str, send: Stub, tiny_denoiser: Denoiser
) -> None:
    request = _score(tiny_denoiser)
    _set(f"context.{name}", text)(request)
    told = refusal(send, request)
    _invalid(told, f"context.{name}", "at most 200 printable characters")


def test_defaults_are_hidden_states_in_the_denoisers_dtype_and_no_capture(
    send: Stub, tiny_denoiser: Denoiser
) -> None:
    request = _score(tiny_denoiser)
    request.ClearField("targets")
    assert {type(record.distribution).__name__ for record in send(request).targets} == {"Hidden"}
    trajectory = _trajectory(tiny_denoiser)
    trajectory.ClearField("targets")
    trajectory.ClearField("capture")
    trajectory.ClearField("resume")
    trajectory.ClearField("frozen")
    answers = send(trajectory)
    assert not answers.targets
    assert len(answers.trajectories) == 2


# Anything at all.

_NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 6, 7, 10, 17, 99, 300, 4096, 2**31 - 1, -(2**31)]),
    st.integers(-(2**31), 2**31 - 1),
)
_FLOATS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e-6, 3e38]),
    st.floats(width=32),
)
_BYTES = st.one_of(
    st.binary(max_size=80),
    st.lists(_NUMBERS, max_size=20).map(lambda values: _int32(*values)),
    st.integers(0, 20).map(lambda count: b"\1" * count),
)
_ENUMS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 99, -1])
_TEXTS = st.one_of(st.text(max_size=20), st.just("x" * 5000))
_LEAVES: dict[str, st.SearchStrategy[object]] = {
    "context.request_id": _TEXTS,
    "context.client_id": _TEXTS,
    "context.expected_revision": _TEXTS,
    "context.expected_tokenizer_fingerprint": _TEXTS,
    "context.cohort.run_id": _TEXTS,
    "targets.encoding": _ENUMS,
    "targets.dtype": _ENUMS,
    "targets.top_k": _NUMBERS,
    "targets.top_p": _FLOATS,
    "targets.temperatures": st.lists(_FLOATS, max_size=4),
}
_SEQUENCES: dict[str, st.SearchStrategy[object]] = {
    "sequence_ids": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    "token_ids": _BYTES,
    "lengths": st.lists(_NUMBERS, max_size=4),
}
_SCORE_LEAVES = (
    _LEAVES
    | {f"states.{name}": leaf for name, leaf in _SEQUENCES.items()}
    | {"positions.positions": _BYTES, "positions.counts": st.lists(_NUMBERS, max_size=4)}
)
_TRAJECTORY_LEAVES = (
    _LEAVES
    | {f"start_states.{name}": leaf for name, leaf in _SEQUENCES.items()}
    | {
        "frozen": _BYTES,
        "seeds": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "sampler.algorithm": _ENUMS,
        "sampler.num_steps": _NUMBERS,
        "sampler.temperature": _FLOATS,
        "sampler.top_k": _NUMBERS,
        "sampler.top_p": _FLOATS,
        "sampler.alg_temp": _FLOATS,
        "sampler.eps": _FLOATS,
        "capture.kind": _ENUMS,
        "capture.every_n_steps": _NUMBERS,
        "capture.steps": st.lists(_NUMBERS, max_size=4),
        "resume.start_steps": st.lists(_NUMBERS, max_size=3),
        "resume.last_collected_steps": st.lists(_NUMBERS, max_size=3),
        "resume.unmask_steps": _BYTES,
        "resume.num_forwards": st.lists(_NUMBERS, max_size=3),
    }
)


def _changes(
    leaves: dict[str, st.SearchStrategy[object]],
) -> st.SearchStrategy[list[Callable[[object], None]]]:
    sets = st.sampled_from(sorted(leaves)).flatmap(
        lambda path: leaves[path].map(lambda value: _set(path, value))
    )
    tops = sorted({path.partition(".")[0] for path in leaves})
    return st.lists(st.one_of(sets, sets, st.sampled_from(tops).map(_clear)), max_size=3)


CLEAN = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@settings(max_examples=150)
@given(data=st.data(), is_score=st.booleans())
def test_any_request_ends_well_or_in_a_clean_refusal(
    data: st.DataObject,
    is_score: bool,
    send: Stub,
    running: servers.RunningServer,
    tiny_denoiser: Denoiser,
) -> None:
    request = _score(tiny_denoiser) if is_score else _trajectory(tiny_denoiser)
    for change in data.draw(_changes(_SCORE_LEAVES if is_score else _TRAJECTORY_LEAVES)):
        change(request)
    try:
        send(request)
    except grpc.RpcError:
        told = refusal(send, request)
        assert told.code in CLEAN, told
        assert told.reason and told.field
        assert told.message.startswith((told.field, "expected_"))
    calls.wait_until(lambda: running.engine.load().num_queued_tokens == 0)
    assert running.engine.snapshot().outcomes[Outcome.FAILED] == 0


def test_the_server_still_works_after_all_that(
    send: Stub, running: servers.RunningServer, tiny_denoiser: Denoiser
) -> None:
    assert len(send(_score(tiny_denoiser)).targets) == 2
    assert len(send(_trajectory(tiny_denoiser)).trajectories) == 2
    assert running.engine.load().healthy
