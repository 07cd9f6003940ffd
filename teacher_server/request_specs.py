"""Reads the choices of a request: how targets are written, how states evolve, what is captured."""

import math

import numpy as np

from masked_diffusion.families import DenoiserInfo
from masked_diffusion.samplers import SamplerConfig, check_fits
from masked_diffusion.samplers.config import MIN_TEMPERATURE
from masked_diffusion.schedule import DEFAULT_EPS
from protos import codec
from protos import teacher_pb2 as pb
from teacher_server import names
from teacher_server.config import LimitsConfig
from teacher_server.engine.sequence import Capture, TargetSpec
from teacher_server.engine.values import TORCH_DTYPES
from teacher_server.refusals import invalid


class SpecReader:
    """Checks choices against what is offered and the limits."""

    def __init__(
        self, info: DenoiserInfo, limits: LimitsConfig, *, model_dtype: codec.ValueDtype
    ) -> None:
        self._info = info
        self._limits = limits
        self._default_dtypes: dict[str, codec.ValueDtype] = {
            "hidden": model_dtype,
            "top_k": "f16",
            "logits": "f32",
        }

    def targets(self, message: pb.TargetSpec) -> TargetSpec:
        """How targets are written."""
        encoding = names.name_of(
            names.ENCODINGS,
            message.encoding or pb.ENCODING_HIDDEN,
            enum=pb.Encoding,
            field="targets.encoding",
        )
        if encoding == "top_k" and not 1 <= message.top_k <= self._limits.max_top_k:
            raise invalid(
                "targets.top_k", f"must be in [1, {self._limits.max_top_k}], got {message.top_k}"
            )
        top_p = message.top_p or 1.0
        if not 0 < top_p <= 1:
            raise invalid("targets.top_p", f"must be in (0, 1], or 0 for all, got {top_p}")
        dtype, temperatures = self._dtype(message, encoding), self._temperatures(message)
        return TargetSpec(
            encoding=encoding,
            dtype=dtype,
            top_k=message.top_k,
            top_p=top_p,
            temperatures=temperatures,
            bytes_per_position=self._bytes_per_position(
                encoding, dtype, top_k=message.top_k, num_temperatures=len(temperatures)
            ),
        )

    def _bytes_per_position(
        self,
        encoding: names.EncodingName,
        dtype: codec.ValueDtype,
        *,
        top_k: int,
        num_temperatures: int,
    ) -> int:
        value_bytes = TORCH_DTYPES[dtype].itemsize
        if encoding == "hidden":
            return value_bytes * self._info.hidden_size
        if encoding == "logits":
            return value_bytes * self._info.vocab_size
        # Ids, offsets, and a normaliser and a tail for each temperature are 4 bytes each.
        return min(top_k, self._info.vocab_size) * (value_bytes + 4) + 4 + 8 * num_temperatures

    def _dtype(self, message: pb.TargetSpec, encoding: names.EncodingName) -> codec.ValueDtype:
        if not message.dtype:
            return self._default_dtypes[encoding]
        dtype = names.name_of(
            names.DTYPES, message.dtype, enum=pb.ValueDtype, field="targets.dtype"
        )
        if dtype == "bf16" and encoding != "hidden":
            raise invalid(
                "targets.dtype",
                "BF16 is too coarse for log-probabilities (0.0625 nats); use F16 or F32",
            )
        return dtype

    def _temperatures(self, message: pb.TargetSpec) -> tuple[float, ...]:
        temperatures = tuple(message.temperatures) or (1.0,)
        limit = self._limits.max_temperatures
        if len(temperatures) > limit:
            raise invalid("targets.temperatures", f"has {len(temperatures)} entries, limit {limit}")
        for temperature in temperatures:
            # Below the least, dividing log-probabilities could overflow float32.
            if not MIN_TEMPERATURE <= _rounded(temperature) < math.inf:
                raise invalid(
                    "targets.temperatures",
                    f"must be finite and at least {MIN_TEMPERATURE}, got {temperature}",
                )
        return temperatures

    def sampler(self, message: pb.SamplerSpec) -> SamplerConfig:
        """How trajectories evolve."""
        algorithm = names.name_of(
            names.algorithms_for(self._info.noise),
            message.algorithm,
            enum=pb.Algorithm,
            field="sampler.algorithm",
        )
        if not 1 <= message.num_steps <= self._limits.max_num_steps:
            raise invalid(
                "sampler.num_steps",
                f"must be in [1, {self._limits.max_num_steps}], got {message.num_steps}",
            )
        if message.sample_mask_token and algorithm == "ancestral":
            raise invalid(
                "sampler.sample_mask_token",
                "must be false with ALGORITHM_ANCESTRAL, whose posterior knows no mask in a clean "
                "sequence, got true",
            )
        if message.sample_mask_token and self._info.noise == "uniform":
            raise invalid(
                "sampler.sample_mask_token",
                "must be false with a teacher of uniform noise, whose sequences never hold the "
                "mask id, got true",
            )
        try:
            config = SamplerConfig(
                algorithm=algorithm,
                num_steps=message.num_steps,
                temperature=_rounded(message.temperature),
                top_k=message.top_k or None,
                top_p=_rounded(message.top_p) or None,
                alg_temp=_rounded(message.alg_temp),
                eps=_rounded(message.eps) or DEFAULT_EPS,
                suppress_mask_token=not message.sample_mask_token,
                block_length=message.block_length,
                guidance_scale=_rounded(message.guidance_scale),
                threshold=_rounded(message.threshold),
                entropy_bound=_rounded(message.entropy_bound),
            )
            check_fits(config, self._info)
        except ValueError as error:
            # Its messages begin with the field's name.
            name, _, message_text = str(error).partition(" ")
            raise invalid(f"sampler.{name}", message_text) from error
        return config

    def capture(self, message: pb.Capture, *, num_steps: int) -> Capture:
        """Which steps return targets."""
        kind = names.name_of(
            names.CAPTURES,
            message.kind or pb.CAPTURE_KIND_NONE,
            enum=pb.CaptureKind,
            field="capture.kind",
        )
        if kind == "none":
            return Capture()
        if kind == "every_n":
            if message.every_n_steps < 1:
                raise invalid(
                    "capture.every_n_steps", f"must be at least 1, got {message.every_n_steps}"
                )
            return Capture(every_n_steps=message.every_n_steps)
        for step in message.steps:
            if not 0 <= step < num_steps:
                raise invalid("capture.steps", f"must be in [0, {num_steps}), got {step}")
        return Capture(steps=frozenset(message.steps))


def _rounded(value: float) -> float:
    """The decimal that a client wrote: 0.7, not float32's 0.699999988."""
    return float(np.format_float_positional(np.float32(value), unique=True))
