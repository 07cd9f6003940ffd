from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_HIDDEN: _ClassVar[Encoding]
    ENCODING_TOP_K: _ClassVar[Encoding]
    ENCODING_SAMPLED: _ClassVar[Encoding]
    ENCODING_GATHER: _ClassVar[Encoding]
    ENCODING_LOGITS: _ClassVar[Encoding]

class ValueDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE_DTYPE_UNSPECIFIED: _ClassVar[ValueDtype]
    VALUE_DTYPE_F32: _ClassVar[ValueDtype]
    VALUE_DTYPE_F16: _ClassVar[ValueDtype]
    VALUE_DTYPE_BF16: _ClassVar[ValueDtype]

class Algorithm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALGORITHM_UNSPECIFIED: _ClassVar[Algorithm]
    ALGORITHM_ORIGIN: _ClassVar[Algorithm]
    ALGORITHM_MASKGIT_PLUS: _ClassVar[Algorithm]
    ALGORITHM_TOPK_MARGIN: _ClassVar[Algorithm]
    ALGORITHM_ENTROPY: _ClassVar[Algorithm]
    ALGORITHM_P2: _ClassVar[Algorithm]
    ALGORITHM_LOW_CONFIDENCE: _ClassVar[Algorithm]
    ALGORITHM_RANDOM: _ClassVar[Algorithm]
    ALGORITHM_LOW_CONFIDENCE_DYNAMIC: _ClassVar[Algorithm]
    ALGORITHM_ENTROPY_BOUNDED: _ClassVar[Algorithm]
    ALGORITHM_ANCESTRAL: _ClassVar[Algorithm]
    ALGORITHM_MULTINOMIAL: _ClassVar[Algorithm]

class CaptureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_KIND_UNSPECIFIED: _ClassVar[CaptureKind]
    CAPTURE_KIND_NONE: _ClassVar[CaptureKind]
    CAPTURE_KIND_EVERY_N: _ClassVar[CaptureKind]
    CAPTURE_KIND_STEPS: _ClassVar[CaptureKind]
    CAPTURE_KIND_AT_UNMASK: _ClassVar[CaptureKind]
    CAPTURE_KIND_MEAN_PROBABILITY: _ClassVar[CaptureKind]
    CAPTURE_KIND_ADAPTIVE: _ClassVar[CaptureKind]

class Attention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTENTION_UNSPECIFIED: _ClassVar[Attention]
    ATTENTION_FULL: _ClassVar[Attention]
    ATTENTION_BLOCK_CAUSAL: _ClassVar[Attention]

class Noise(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOISE_UNSPECIFIED: _ClassVar[Noise]
    NOISE_ABSORBING: _ClassVar[Noise]
    NOISE_UNIFORM: _ClassVar[Noise]
ENCODING_UNSPECIFIED: Encoding
ENCODING_HIDDEN: Encoding
ENCODING_TOP_K: Encoding
ENCODING_SAMPLED: Encoding
ENCODING_GATHER: Encoding
ENCODING_LOGITS: Encoding
VALUE_DTYPE_UNSPECIFIED: ValueDtype
VALUE_DTYPE_F32: ValueDtype
VALUE_DTYPE_F16: ValueDtype
VALUE_DTYPE_BF16: ValueDtype
ALGORITHM_UNSPECIFIED: Algorithm
ALGORITHM_ORIGIN: Algorithm
ALGORITHM_MASKGIT_PLUS: Algorithm
ALGORITHM_TOPK_MARGIN: Algorithm
ALGORITHM_ENTROPY: Algorithm
ALGORITHM_P2: Algorithm
ALGORITHM_LOW_CONFIDENCE: Algorithm
ALGORITHM_RANDOM: Algorithm
ALGORITHM_LOW_CONFIDENCE_DYNAMIC: Algorithm
ALGORITHM_ENTROPY_BOUNDED: Algorithm
ALGORITHM_ANCESTRAL: Algorithm
ALGORITHM_MULTINOMIAL: Algorithm
CAPTURE_KIND_UNSPECIFIED: CaptureKind
CAPTURE_KIND_NONE: CaptureKind
CAPTURE_KIND_EVERY_N: CaptureKind
CAPTURE_KIND_STEPS: CaptureKind
CAPTURE_KIND_AT_UNMASK: CaptureKind
CAPTURE_KIND_MEAN_PROBABILITY: CaptureKind
CAPTURE_KIND_ADAPTIVE: CaptureKind
ATTENTION_UNSPECIFIED: Attention
ATTENTION_FULL: Attention
ATTENTION_BLOCK_CAUSAL: Attention
NOISE_UNSPECIFIED: Noise
NOISE_ABSORBING: Noise
NOISE_UNIFORM: Noise

class DescribeTeacherRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeTeacherResponse(_message.Message):
    __slots__ = ("name", "family", "revision", "tokenizer_fingerprint", "vocab_size", "padded_vocab_size", "mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "max_length", "attention", "hidden_size", "head_digest", "num_invalid_leading_positions", "num_parameters", "dtype", "encodings", "algorithms", "captures", "limits", "payload_version", "block_length", "noise", "uses_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    PADDED_VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MASK_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_INVALID_LEADING_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    USES_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    revision: str
    tokenizer_fingerprint: str
    vocab_size: int
    padded_vocab_size: int
    mask_token_id: int
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    max_length: int
    attention: Attention
    hidden_size: int
    head_digest: str
    num_invalid_leading_positions: int
    num_parameters: int
    dtype: ValueDtype
    encodings: _containers.RepeatedScalarFieldContainer[Encoding]
    algorithms: _containers.RepeatedScalarFieldContainer[Algorithm]
    captures: _containers.RepeatedScalarFieldContainer[CaptureKind]
    limits: Limits
    payload_version: int
    block_length: int
    noise: Noise
    uses_time: bool
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., revision: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., padded_vocab_size: _Optional[int] = ..., mask_token_id: _Optional[int] = ..., pad_token_id: _Optional[int] = ..., bos_token_id: _Optional[int] = ..., eos_token_id: _Optional[int] = ..., max_length: _Optional[int] = ..., attention: _Optional[_Union[Attention, str]] = ..., hidden_size: _Optional[int] = ..., head_digest: _Optional[str] = ..., num_invalid_leading_positions: _Optional[int] = ..., num_parameters: _Optional[int] = ..., dtype: _Optional[_Union[ValueDtype, str]] = ..., encodings: _Optional[_Iterable[_Union[Encoding, str]]] = ..., algorithms: _Optional[_Iterable[_Union[Algorithm, str]]] = ..., captures: _Optional[_Iterable[_Union[CaptureKind, str]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., payload_version: _Optional[int] = ..., block_length: _Optional[int] = ..., noise: _Optional[_Union[Noise, str]] = ..., uses_time: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_sequences", "max_tokens", "max_num_steps", "max_top_k", "max_temperatures", "stream_window_bytes")
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_sequences: int
    max_tokens: int
    max_num_steps: int
    max_top_k: int
    max_temperatures: int
    stream_window_bytes: int
    def __init__(self, max_sequences: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_num_steps: _Optional[int] = ..., max_top_k: _Optional[int] = ..., max_temperatures: _Optional[int] = ..., stream_window_bytes: _Optional[int] = ...) -> None: ...

class Sequences(_message.Message):
    __slots__ = ("sequence_ids", "token_ids", "lengths")
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: bytes
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[bytes] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class Positions(_message.Message):
    __slots__ = ("positions", "counts")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    positions: bytes
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[bytes] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetSpec(_message.Message):
    __slots__ = ("encoding", "dtype", "top_k", "top_p", "temperatures")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    encoding: Encoding
    dtype: ValueDtype
    top_k: int
    top_p: float
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, encoding: _Optional[_Union[Encoding, str]] = ..., dtype: _Optional[_Union[ValueDtype, str]] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., temperatures: _Optional[_Iterable[float]] = ...) -> None: ...

class RequestContext(_message.Message):
    __slots__ = ("request_id", "client_id", "expected_revision", "expected_tokenizer_fingerprint", "cohort")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    client_id: str
    expected_revision: str
    expected_tokenizer_fingerprint: str
    cohort: CohortHint
    def __init__(self, request_id: _Optional[str] = ..., client_id: _Optional[str] = ..., expected_revision: _Optional[str] = ..., expected_tokenizer_fingerprint: _Optional[str] = ..., cohort: _Optional[_Union[CohortHint, _Mapping]] = ...) -> None: ...

class CohortHint(_message.Message):
    __slots__ = ("run_id", "step", "num_requests")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    num_requests: int
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., num_requests: _Optional[int] = ...) -> None: ...

class ScoreStatesRequest(_message.Message):
    __slots__ = ("context", "states", "positions", "targets", "times", "clean_token_ids")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    CLEAN_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    context: RequestContext
    states: Sequences
    positions: Positions
    targets: TargetSpec
    times: _containers.RepeatedScalarFieldContainer[float]
    clean_token_ids: bytes
    def __init__(self, context: _Optional[_Union[RequestContext, _Mapping]] = ..., states: _Optional[_Union[Sequences, _Mapping]] = ..., positions: _Optional[_Union[Positions, _Mapping]] = ..., targets: _Optional[_Union[TargetSpec, _Mapping]] = ..., times: _Optional[_Iterable[float]] = ..., clean_token_ids: _Optional[bytes] = ...) -> None: ...

class TargetsPart(_message.Message):
    __slots__ = ("sequence_id", "step", "payload_bytes", "offset", "data", "crc32c")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    step: int
    payload_bytes: int
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, sequence_id: _Optional[int] = ..., step: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class ScoreStatesResponse(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[TargetsPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[TargetsPart, _Mapping]]] = ...) -> None: ...

class SamplerSpec(_message.Message):
    __slots__ = ("algorithm", "num_steps", "temperature", "top_k", "top_p", "alg_temp", "eps", "sample_mask_token", "block_length", "guidance_scale", "threshold", "entropy_bound")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    ALG_TEMP_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_MASK_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_BOUND_FIELD_NUMBER: _ClassVar[int]
    algorithm: Algorithm
    num_steps: int
    temperature: float
    top_k: int
    top_p: float
    alg_temp: float
    eps: float
    sample_mask_token: bool
    block_length: int
    guidance_scale: float
    threshold: float
    entropy_bound: float
    def __init__(self, algorithm: _Optional[_Union[Algorithm, str]] = ..., num_steps: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., alg_temp: _Optional[float] = ..., eps: _Optional[float] = ..., sample_mask_token: bool = ..., block_length: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., threshold: _Optional[float] = ..., entropy_bound: _Optional[float] = ...) -> None: ...

class Capture(_message.Message):
    __slots__ = ("kind", "every_n_steps", "steps")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EVERY_N_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    kind: CaptureKind
    every_n_steps: int
    steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[CaptureKind, str]] = ..., every_n_steps: _Optional[int] = ..., steps: _Optional[_Iterable[int]] = ...) -> None: ...

class ResumePoints(_message.Message):
    __slots__ = ("start_steps", "last_collected_steps", "unmask_steps", "num_forwards")
    START_STEPS_FIELD_NUMBER: _ClassVar[int]
    LAST_COLLECTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    UNMASK_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    start_steps: _containers.RepeatedScalarFieldContainer[int]
    last_collected_steps: _containers.RepeatedScalarFieldContainer[int]
    unmask_steps: bytes
    num_forwards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start_steps: _Optional[_Iterable[int]] = ..., last_collected_steps: _Optional[_Iterable[int]] = ..., unmask_steps: _Optional[bytes] = ..., num_forwards: _Optional[_Iterable[int]] = ...) -> None: ...

class SampleTrajectoriesRequest(_message.Message):
    __slots__ = ("context", "start_states", "frozen", "seeds", "sampler", "capture", "targets", "resume")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    START_STATES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    context: RequestContext
    start_states: Sequences
    frozen: bytes
    seeds: _containers.RepeatedScalarFieldContainer[int]
    sampler: SamplerSpec
    capture: Capture
    targets: TargetSpec
    resume: ResumePoints
    def __init__(self, context: _Optional[_Union[RequestContext, _Mapping]] = ..., start_states: _Optional[_Union[Sequences, _Mapping]] = ..., frozen: _Optional[bytes] = ..., seeds: _Optional[_Iterable[int]] = ..., sampler: _Optional[_Union[SamplerSpec, _Mapping]] = ..., capture: _Optional[_Union[Capture, _Mapping]] = ..., targets: _Optional[_Union[TargetSpec, _Mapping]] = ..., resume: _Optional[_Union[ResumePoints, _Mapping]] = ...) -> None: ...

class TrajectoryRecord(_message.Message):
    __slots__ = ("sequence_id", "token_ids", "unmask_steps", "num_forwards", "num_steps", "num_collected_steps", "revision", "mask_token_suppressed")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    UNMASK_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_COLLECTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MASK_TOKEN_SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    token_ids: bytes
    unmask_steps: bytes
    num_forwards: int
    num_steps: int
    num_collected_steps: int
    revision: str
    mask_token_suppressed: bool
    def __init__(self, sequence_id: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., unmask_steps: _Optional[bytes] = ..., num_forwards: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_collected_steps: _Optional[int] = ..., revision: _Optional[str] = ..., mask_token_suppressed: bool = ...) -> None: ...

class SampleTrajectoriesResponse(_message.Message):
    __slots__ = ("parts", "trajectories")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORIES_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[TargetsPart]
    trajectories: _containers.RepeatedCompositeFieldContainer[TrajectoryRecord]
    def __init__(self, parts: _Optional[_Iterable[_Union[TargetsPart, _Mapping]]] = ..., trajectories: _Optional[_Iterable[_Union[TrajectoryRecord, _Mapping]]] = ...) -> None: ...

class GetHeadRequest(_message.Message):
    __slots__ = ("expected_digest",)
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    expected_digest: str
    def __init__(self, expected_digest: _Optional[str] = ...) -> None: ...

class HeadSpec(_message.Message):
    __slots__ = ("digest", "dtype", "vocab_size", "hidden_size", "has_bias", "logit_scale", "logit_soft_cap")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SOFT_CAP_FIELD_NUMBER: _ClassVar[int]
    digest: str
    dtype: ValueDtype
    vocab_size: int
    hidden_size: int
    has_bias: bool
    logit_scale: float
    logit_soft_cap: float
    def __init__(self, digest: _Optional[str] = ..., dtype: _Optional[_Union[ValueDtype, str]] = ..., vocab_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., has_bias: bool = ..., logit_scale: _Optional[float] = ..., logit_soft_cap: _Optional[float] = ...) -> None: ...

class GetHeadResponse(_message.Message):
    __slots__ = ("head", "payload_bytes", "offset", "data", "crc32c")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    head: HeadSpec
    payload_bytes: int
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, head: _Optional[_Union[HeadSpec, _Mapping]] = ..., payload_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class SwapWeightsRequest(_message.Message):
    __slots__ = ("expected_revision", "file_name", "offset", "data", "crc32c")
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    expected_revision: str
    file_name: str
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, expected_revision: _Optional[str] = ..., file_name: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class SwapWeightsResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: str
    def __init__(self, revision: _Optional[str] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("backlog_s", "num_live_rows", "num_waiting_rows", "draining", "num_admitted_rows", "num_done_rows", "num_cancelled_rows", "num_expired_rows", "num_failed_rows", "num_forwards", "num_forward_rows", "num_shared_forwards", "num_target_positions", "peak_rss_bytes", "num_forward_tokens", "num_padded_tokens", "num_payload_bytes", "busy_s")
    BACKLOG_S_FIELD_NUMBER: _ClassVar[int]
    NUM_LIVE_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_ADMITTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_DONE_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_CANCELLED_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPIRED_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    NUM_FORWARD_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARED_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_FORWARD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PADDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    backlog_s: float
    num_live_rows: int
    num_waiting_rows: int
    draining: bool
    num_admitted_rows: int
    num_done_rows: int
    num_cancelled_rows: int
    num_expired_rows: int
    num_failed_rows: int
    num_forwards: int
    num_forward_rows: int
    num_shared_forwards: int
    num_target_positions: int
    peak_rss_bytes: int
    num_forward_tokens: int
    num_padded_tokens: int
    num_payload_bytes: int
    busy_s: float
    def __init__(self, backlog_s: _Optional[float] = ..., num_live_rows: _Optional[int] = ..., num_waiting_rows: _Optional[int] = ..., draining: bool = ..., num_admitted_rows: _Optional[int] = ..., num_done_rows: _Optional[int] = ..., num_cancelled_rows: _Optional[int] = ..., num_expired_rows: _Optional[int] = ..., num_failed_rows: _Optional[int] = ..., num_forwards: _Optional[int] = ..., num_forward_rows: _Optional[int] = ..., num_shared_forwards: _Optional[int] = ..., num_target_positions: _Optional[int] = ..., peak_rss_bytes: _Optional[int] = ..., num_forward_tokens: _Optional[int] = ..., num_padded_tokens: _Optional[int] = ..., num_payload_bytes: _Optional[int] = ..., busy_s: _Optional[float] = ...) -> None: ...
