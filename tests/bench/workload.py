"""The training run whose overhead is measured: sizes in the proportions of a real one."""

from dataclasses import dataclass

from tests.bench.instant_targets import InstantTargets


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A student whose body takes nearly all of a step, as in models that are used.

    The head holds 6 % of the parameters; 7 % in Qwen2.5-Coder 7B, 28 % in 0.5B.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    seq_len: int = 128
    micro_batch_size: int = 4
    """Half of the trainer's default: a short run has more steps, and what a step costs whatever
    its size weighs twice."""
    teacher_hidden_size: int = 320
    """Of the targets that a server without a model sends."""
    top_k: int = 64
    seed: int = 0

    @property
    def mask_token_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1

    def instant_targets(self) -> InstantTargets:
        """What the server without a model sends."""
        return InstantTargets(
            vocab_size=self.vocab_size,
            mask_token_id=self.mask_token_id,
            hidden_size=self.teacher_hidden_size,
            max_length=self.seq_len,
            top_k=self.top_k,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long steps are timed."""

    num_warmup: int
    """Steps first that are not counted."""
    max_steps: int
    """Counted steps at most."""
    budget_s: float
    """Wall time, warm-up included, after which no further step begins."""
    min_steps: int = 4
    """Counted steps at least."""

    @property
    def num_steps(self) -> int:
        """Steps that a trainer may be asked for."""
        return self.num_warmup + self.max_steps
