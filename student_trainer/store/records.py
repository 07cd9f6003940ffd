"""What a store keeps: units of records, each unit the whole answer to one question."""

from dataclasses import dataclass

from protos import codec
from student_trainer.store.keys import NO_KEY


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredRecord:
    """Targets with what a loss needs to know of their state."""

    targets: codec.StepTargets
    """With its state."""
    t: float
    """Mask probability of the state, as the loss weighs it."""
    num_maskable: int
    """Positions of the state that could have been masked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Unit:
    """All records of one score (one) or one trajectory (its collected steps, maybe none).

    A unit is never split: it is in a store whole or not at all.
    """

    key: bytes
    """See `keys`."""
    example_key: bytes = NO_KEY
    """The clean sequence that the states were made from."""
    records: tuple[StoredRecord, ...]
    """By step."""

    @property
    def num_bytes(self) -> int:
        """About what the unit takes in memory."""
        return sum(_num_bytes(record.targets) for record in self.records)


def _num_bytes(targets: codec.StepTargets) -> int:
    distribution = targets.distribution
    if isinstance(distribution, codec.TopK):
        num_values = distribution.log_probs.data.nbytes + distribution.token_ids.nbytes
    else:
        num_values = distribution.values.data.nbytes
    num_tokens = 0 if targets.state is None else len(targets.state)
    return num_values + 8 * (num_tokens + len(targets.positions))
