"""What the client asks and what it is told, in plain types: messages stay inside this file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from masked_diffusion.families.info import Noise
from protos import codec
from protos import teacher_pb2 as pb

Encoding = Literal["hidden", "top_k", "logits"]

_ENCODINGS: Mapping[str, pb.Encoding] = {
    "hidden": pb.ENCODING_HIDDEN,
    "top_k": pb.ENCODING_TOP_K,
    "logits": pb.ENCODING_LOGITS,
}
_DTYPES: Mapping[str, pb.ValueDtype] = {
    "auto": pb.VALUE_DTYPE_UNSPECIFIED,
    "f32": pb.VALUE_DTYPE_F32,
    "f16": pb.VALUE_DTYPE_F16,
    "bf16": pb.VALUE_DTYPE_BF16,
}
_ALGORITHMS: Mapping[str, pb.Algorithm] = {
    "origin": pb.ALGORITHM_ORIGIN,
    "maskgit_plus": pb.ALGORITHM_MASKGIT_PLUS,
    "topk_margin": pb.ALGORITHM_TOPK_MARGIN,
    "entropy": pb.ALGORITHM_ENTROPY,
    "p2": pb.ALGORITHM_P2,
    "low_confidence": pb.ALGORITHM_LOW_CONFIDENCE,
    "random": pb.ALGORITHM_RANDOM,
    "low_confidence_dynamic": pb.ALGORITHM_LOW_CONFIDENCE_DYNAMIC,
    "entropy_bounded": pb.ALGORITHM_ENTROPY_BOUNDED,
    "ancestral": pb.ALGORITHM_ANCESTRAL,
    "multinomial": pb.ALGORITHM_MULTINOMIAL,
}
_NOISES: Mapping[pb.Noise, Noise] = {
    pb.NOISE_UNSPECIFIED: "absorbing",
    pb.NOISE_ABSORBING: "absorbing",
    pb.NOISE_UNIFORM: "uniform",
}
_DTYPE_NAMES = {value: name for name, value in _DTYPES.items() if name != "auto"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """How targets are written."""

    encoding: Encoding = "hidden"
    dtype: Literal["auto", "f32", "f16", "bf16"] = "auto"
    """"auto": the teacher's own for hidden states, f16 for TOP_K, f32 for LOGITS."""
    top_k: int = 64
    top_p: float = 1.0
    temperatures: tuple[float, ...] = (1.0,)

    def to_message(self) -> pb.TargetSpec:
        """The message; fields of other encodings stay empty."""
        is_top_k = self.encoding == "top_k"
        return pb.TargetSpec(
            encoding=_ENCODINGS[self.encoding],
            dtype=_DTYPES[self.dtype],
            top_k=self.top_k if is_top_k else 0,
            top_p=self.top_p if is_top_k else 0.0,
            temperatures=self.temperatures if is_top_k else (),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSpec:
    """How trajectories evolve, see `masked_diffusion.samplers.SamplerConfig`."""

    algorithm: str
    num_steps: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    alg_temp: float = 0.0
    eps: float = 1e-3
    suppress_mask_token: bool = True
    block_length: int = 0
    guidance_scale: float = 0.0
    threshold: float = 0.0
    entropy_bound: float = 0.0

    @property
    def forwards_per_step(self) -> int:
        """Forwards that a step of one sequence costs: the unconditional one too, with guidance."""
        return 2 if self.guidance_scale > 0 else 1

    def to_message(self) -> pb.SamplerSpec:
        """The message. An algorithm the contract does not know goes out as 0 and is refused."""
        return pb.SamplerSpec(
            algorithm=_ALGORITHMS.get(self.algorithm, pb.ALGORITHM_UNSPECIFIED),
            num_steps=self.num_steps,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            alg_temp=self.alg_temp,
            eps=self.eps,
            sample_mask_token=not self.suppress_mask_token,
            block_length=self.block_length,
            guidance_scale=self.guidance_scale,
            threshold=self.threshold,
            entropy_bound=self.entropy_bound,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureSpec:
    """Which steps return targets: every n-th, listed ones, or (both empty) none."""

    every_n_steps: int = 0
    steps: tuple[int, ...] = ()

    def to_message(self) -> pb.Capture:
        """The message."""
        if self.every_n_steps:
            return pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=self.every_n_steps)
        if self.steps:
            return pb.Capture(kind=pb.CAPTURE_KIND_STEPS, steps=self.steps)
        return pb.Capture(kind=pb.CAPTURE_KIND_NONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDescription:
    """What a teacher told about itself."""

    name: str
    family: str
    revision: str
    tokenizer_fingerprint: str
    vocab_size: int
    mask_token_id: int
    max_length: int
    hidden_size: int
    head_digest: str
    num_invalid_leading_positions: int
    num_parameters: int
    block_length: int
    """Positions of a block; 0 with full attention."""
    encodings: tuple[str, ...]
    algorithms: tuple[str, ...]
    max_sequences: int
    max_tokens: int
    noise: Noise = "absorbing"
    """What the teacher's forward process puts in a token's place."""
    uses_time: bool = False
    """Whether a forward needs the time of its states."""

    @classmethod
    def from_message(cls, message: pb.DescribeTeacherResponse) -> "TeacherDescription":
        """Reads the message; encodings and algorithms this client does not know are left out."""
        encodings = {value: name for name, value in _ENCODINGS.items()}
        algorithms = {value: name for name, value in _ALGORITHMS.items()}
        return cls(
            name=message.name,
            family=message.family,
            revision=message.revision,
            tokenizer_fingerprint=message.tokenizer_fingerprint,
            vocab_size=message.vocab_size,
            mask_token_id=message.mask_token_id,
            max_length=message.max_length,
            hidden_size=message.hidden_size,
            head_digest=message.head_digest,
            num_invalid_leading_positions=message.num_invalid_leading_positions,
            num_parameters=message.num_parameters,
            block_length=message.block_length,
            encodings=tuple(encodings[value] for value in message.encodings if value in encodings),
            algorithms=tuple(
                algorithms[value] for value in message.algorithms if value in algorithms
            ),
            max_sequences=message.limits.max_sequences,
            max_tokens=message.limits.max_tokens,
            noise=_NOISES[message.noise],
            uses_time=message.uses_time,
        )

    @property
    def is_block_causal(self) -> bool:
        """True where the teacher sees the blocks before a position's own clean, if it is told."""
        return self.block_length > 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WireHead:
    """The head as it arrived; logits = c * tanh(s * (h W^T + b) / c), c the soft cap."""

    digest: str
    dtype: Literal["f32", "f16", "bf16"]
    weight_VD: np.ndarray
    """[V, D], uint16 bits where the dtype is bf16."""
    bias_V: np.ndarray | None
    logit_scale: float
    logit_soft_cap: float | None

    @classmethod
    def from_bytes(cls, spec: pb.HeadSpec, data: codec.Payload) -> "WireHead":
        """Cuts the payload of GetHead into weight and bias."""
        dtype = _DTYPE_NAMES[spec.dtype]
        flat = np.frombuffer(data, dtype={"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[dtype])
        size = spec.vocab_size * spec.hidden_size
        return cls(
            digest=spec.digest,
            dtype=dtype,  # type: ignore[arg-type]
            weight_VD=flat[:size].reshape(spec.vocab_size, spec.hidden_size),
            bias_V=flat[size : size + spec.vocab_size] if spec.has_bias else None,
            logit_scale=spec.logit_scale,
            logit_soft_cap=spec.logit_soft_cap or None,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """The end of one trajectory."""

    sequence_id: int
    token_ids_L: np.ndarray
    """[L] int32."""
    unmask_steps_L: np.ndarray
    """[L] int32: the step that last unmasked it, -1 = given."""
    num_forwards: int
    num_steps: int
    revision: str
    mask_token_suppressed: bool
    """False where the mask id could be drawn, so that masks may be left."""

    @classmethod
    def from_message(cls, message: pb.TrajectoryRecord) -> "Trajectory":
        """Reads the message."""
        return cls(
            sequence_id=message.sequence_id,
            token_ids_L=np.frombuffer(message.token_ids, dtype="<i4"),
            unmask_steps_L=np.frombuffer(message.unmask_steps, dtype="<i4"),
            num_forwards=message.num_forwards,
            num_steps=message.num_steps,
            revision=message.revision,
            mask_token_suppressed=message.mask_token_suppressed,
        )


def positions_message(positions: Sequence[np.ndarray]) -> pb.Positions:
    """Ragged positions of several sequences."""
    return pb.Positions(
        positions=b"".join(np.ascontiguousarray(p, dtype="<i4").tobytes() for p in positions),
        counts=[len(p) for p in positions],
    )


def sequences_message(sequence_ids: Sequence[int], states: Sequence[np.ndarray]) -> pb.Sequences:
    """Ragged ids of several sequences."""
    return pb.Sequences(
        sequence_ids=sequence_ids,
        token_ids=int32_bytes(states),
        lengths=[len(ids) for ids in states],
    )


def int32_bytes(rows: Iterable[np.ndarray]) -> bytes:
    """Numbers of several rows, one after another, as the contract has them."""
    return b"".join(np.ascontiguousarray(row, dtype="<i4").tobytes() for row in rows)
