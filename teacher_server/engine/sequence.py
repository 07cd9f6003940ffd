"""What the engine holds: requests, and their rows (one sequence at its own step)."""

import enum
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from masked_diffusion.samplers import SamplerConfig
from protos import errors
from teacher_server.engine.stream import OutputWindow


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """How targets are written."""

    encoding: Literal["hidden", "top_k", "logits"]
    dtype: Literal["f32", "f16", "bf16"]
    top_k: int = 0
    """Ids kept at most, for "top_k"."""
    top_p: float = 1.0
    """Mass at which fewer are kept, for "top_k"."""
    temperatures: tuple[float, ...] = (1.0,)
    bytes_per_position: int = 0
    """Bytes that the distribution at one position takes, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """Which steps of a trajectory return targets; steps are counted from 0."""

    every_n_steps: int = 0
    """n > 0: steps i with i % n == 0."""
    steps: frozenset[int] = frozenset()

    def covers(self, step: int) -> bool:
        """True where targets of the step are returned."""
        return step in self.steps or (self.every_n_steps > 0 and step % self.every_n_steps == 0)


class Outcome(enum.StrEnum):
    """How a row ended; every admitted row has exactly one."""

    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """What one call asked for, as the engine sees it."""

    request_id: str
    client_id: str
    kind: Literal["score", "trajectory"]
    deadline_s: float
    """Monotonic time at which the caller stops waiting."""
    targets: TargetSpec
    capture: Capture
    sampler: SamplerConfig | None
    """None for a score."""
    stream: OutputWindow
    rows: list["Row"] = field(default_factory=list)
    """Rows that have not ended."""
    num_rows: int = 0
    num_tokens: int = 0
    num_target_positions: int = 0
    num_forwards: int = 0
    error: errors.TeacherError | None = None
    """Why it did not end well; the first cause wins."""


@dataclass(kw_only=True, slots=True, eq=False)
class Row:
    """One sequence at its own step of its own request. Owned by the engine's thread."""

    request: Request
    sequence_id: int
    x_L: torch.Tensor
    """[L] int64 on the CPU: the ids now. Replaced, never written in place."""
    frozen_L: torch.Tensor
    """[L] bool: never touched."""
    clean_x_L: torch.Tensor | None = None
    """[L] int64, of a score: what a block-causal teacher sees of the blocks before a position's
    own; None = the state itself."""
    order: int = -1
    """Order of arrival in the engine."""
    seed: int = 0
    step: int = 0
    num_steps: int = 1
    time: float | None = None
    """Of the client's state, where it told one; None for a trajectory, whose schedule tells."""
    positions_M: np.ndarray | None = None
    """[M] int32 positions that carry targets; None = the open ones."""
    max_positions: int = 0
    """Positions that carry targets at any step, at most."""
    unmask_steps_L: np.ndarray | None = None
    """[L] int32, -1 = given or still masked; None for a score."""
    num_forwards: int = 0
    num_collected_steps: int = 0
    last_collected_step: int = -1
    """Steps up to here are not emitted: the client has them."""
    state_is_collected: bool = False
    """True where the client has the present state's targets: idle steps do not repeat them."""
    is_ready: bool = False
    """True where the present step needs a forward; else the step may turn out to be idle."""
    decided_L: torch.Tensor | None = None
    """[L] bool: where the sampler must decide at this step; None for a score."""
    content: Hashable = field(default=None, repr=False)
    """What was asked for; rows of equal content get equal targets."""
    leader: "Row | None" = field(default=None, repr=False)
    """The row of the same content that runs for this one too."""
    twins: list["Row"] = field(default_factory=list, repr=False)
    """The rows that this one runs for too."""
    length: int = field(init=False)
    """Tokens of the sequence; never changes."""

    def __post_init__(self) -> None:
        # Asked for many times a step: a tensor takes long to tell it.
        self.length = len(self.x_L)

    @property
    def readers(self) -> list["Row"]:
        """Whose streams get what this row gets: itself and its twins."""
        return [self, *self.twins]

    def take_state_of(self, other: "Row") -> None:
        """Goes on where a row of the same content stands."""
        self.x_L, self.unmask_steps_L = other.x_L, other.unmask_steps_L
        self.step, self.is_ready, self.decided_L = other.step, other.is_ready, other.decided_L
        self.num_forwards = other.num_forwards
        self.num_collected_steps = other.num_collected_steps
        self.state_is_collected = other.state_is_collected

    @property
    def client_id(self) -> str:
        """Who asked for it."""
        return self.request.client_id

    @property
    def deadline_s(self) -> float:
        """Monotonic time at which the first of its readers stops waiting."""
        if not self.twins:  # nearly always, and asked for of every row at every step
            return self.request.deadline_s
        return min(row.request.deadline_s for row in self.readers)

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance; 0 = none."""
        return 0.0 if self.request.sampler is None else self.request.sampler.guidance_scale

    @property
    def forwards_per_step(self) -> int:
        """Rows of the denoiser's batch that a step takes; clean ids are a second stream."""
        if self.clean_x_L is not None:
            return 2
        return 1 if self.request.sampler is None else self.request.sampler.forwards_per_step

    @property
    def step_tokens(self) -> int:
        """Of one step, a row with guidance counted twice."""
        return self.length * self.forwards_per_step

    @property
    def num_tokens_left(self) -> int:
        """Of all steps to come, if none is idle."""
        return self.step_tokens * max(1, self.num_steps - self.step)

    @property
    def captures_now(self) -> bool:
        """True where the present step returns targets that the client does not have."""
        if self.request.kind == "score":
            return True
        return not self.state_is_collected and self.request.capture.covers(self.step)

    @property
    def max_step_bytes(self) -> int:
        """Bytes of distributions that the present step returns, at most."""
        return self.captures_now * self.max_positions * self.request.targets.bytes_per_position
