"""Counts of what the engine did, read by anyone, written by the engine's thread alone."""

from dataclasses import dataclass, field, fields

from teacher_server.engine.sequence import Outcome


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start. admitted = the four outcomes + rows live or waiting."""

    num_admitted_rows: int = 0
    num_joined_rows: int = 0
    """Admitted rows that another row of the same content ran for."""
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    num_forwards: int = 0
    num_forward_rows: int = 0
    num_forward_tokens: int = 0
    """Tokens of all forwards, padding left out."""
    num_padded_tokens: int = 0
    """Tokens of all forwards, padding included."""
    num_head_positions: int = 0
    """Positions that the head was applied to."""
    num_shared_forwards: int = 0
    """Forwards with rows of more than one client."""
    num_mixed_forwards: int = 0
    """Forwards with both scores and trajectories."""
    num_target_positions: int = 0
    num_payload_bytes: int = 0
    forward_s: float = 0.0
    """Of the denoiser's body; this and the next ones as the CPU sees them."""
    head_s: float = 0.0
    encode_s: float = 0.0
    """Distributions and payloads of what is emitted."""
    sample_s: float = 0.0
    """Draws, and the next states."""
    busy_s: float = 0.0
    """Time in steps: forward, encoding, sampling."""

    def add(self, other: "EngineCounters") -> None:
        """Adds what another engine did."""
        for field_ in fields(self):
            if field_.name != "outcomes":
                total = getattr(self, field_.name) + getattr(other, field_.name)
                setattr(self, field_.name, total)
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] += count

    @property
    def tokens_per_s(self) -> float:
        """Mean speed while busy, in tokens of forwards without padding."""
        return self.num_forward_tokens / self.busy_s if self.busy_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """The engine at one moment."""

    num_live_rows: int
    num_waiting_rows: int
    num_queued_tokens: int
    backlog_s: float
    draining: bool
    healthy: bool
