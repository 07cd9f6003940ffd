"""What all records of a store share, and so is written once and not with each of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from protos import codec
from student_trainer.store.errors import CorruptStoreError

_ENCODINGS: Mapping[type, str] = {
    codec.Hidden: "hidden",
    codec.TopK: "top_k",
    codec.Logits: "logits",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordFormat:
    """Whose targets, in which encoding."""

    revision: str
    tokenizer_fingerprint: str
    mask_token_id: int
    encoding: str
    dtype: codec.ValueDtype
    temperatures: tuple[float, ...] = ()
    """TOP_K: the distillation temperatures, as float32 holds them."""

    @classmethod
    def of(cls, targets: codec.StepTargets, *, mask_token_id: int) -> "RecordFormat":
        """The format of one record."""
        distribution = targets.distribution
        temperatures: tuple[float, ...] = ()
        if isinstance(distribution, codec.TopK):
            values = distribution.log_probs
            temperatures = tuple(distribution.temperatures.tolist())
        else:
            values = distribution.values
        return cls(
            revision=targets.revision,
            tokenizer_fingerprint=targets.tokenizer_fingerprint,
            mask_token_id=mask_token_id,
            encoding=_ENCODINGS[type(distribution)],
            dtype=values.dtype,
            temperatures=temperatures,
        )

    def difference(self, other: "RecordFormat") -> str | None:
        """The first field in which the two differ, with both values; None where they agree."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                return f"{field.name} is {theirs!r}, not {ours!r}"
        return None

    def to_metadata(self) -> dict[str, str]:
        """As safetensors keeps it."""
        return {"record_format": json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "RecordFormat":
        """Reads `to_metadata`.

        Raises:
            CorruptStoreError: it is not there or not whole.
        """
        try:
            values = json.loads(metadata["record_format"])
            return cls(**values | {"temperatures": tuple(values["temperatures"])})
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"its record_format cannot be read: {error!r}") from error
