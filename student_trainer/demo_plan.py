"""Sizes of the demo: what is trained, on how much, for how long."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """A Qwen2 body."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """Everything that makes one demo differ from another."""

    max_corpus_bytes: int | None
    """None = the whole standard library."""
    vocab_size: int
    max_seq_len: int
    teacher: ModelSize
    student: ModelSize
    teacher_steps: int
    student_steps: int
    micro_batch_size: int
    """Sequences of one rank and optimizer step."""
    teacher_lr: float
    student_lr: float
    num_held_out_sequences: int
    masks_per_sequence: int
    num_infills: int
    infill_steps: int
    num_ranks: int = 2
    min_chunk_tokens: int = 16
    """Shorter last pieces of training files are dropped."""
    distillation_alpha: float = 1.0
    seed: int = 0


# Chosen by measuring on two cores. Many small steps: in its first hundreds a masked diffusion model
# learns only how frequent each token is, and it is the number of steps rather than of tokens that
# takes it off that plateau. The teacher gets three times the student's steps, to be worth asking.
FULL = DemoPlan(
    max_corpus_bytes=None,
    vocab_size=1024,
    max_seq_len=128,
    teacher=ModelSize(hidden_size=96, num_hidden_layers=3, num_attention_heads=4),
    student=ModelSize(hidden_size=48, num_hidden_layers=2, num_attention_heads=4),
    teacher_steps=1500,
    student_steps=500,
    micro_batch_size=8,
    teacher_lr=4e-3,
    student_lr=4e-3,
    num_held_out_sequences=384,
    masks_per_sequence=1,
    num_infills=4,
    infill_steps=32,
)

QUICK = DemoPlan(
    max_corpus_bytes=2_000_000,
    vocab_size=512,
    max_seq_len=64,
    teacher=ModelSize(hidden_size=64, num_hidden_layers=2, num_attention_heads=2),
    student=ModelSize(hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
    teacher_steps=60,
    student_steps=30,
    micro_batch_size=8,
    teacher_lr=3e-3,
    student_lr=4e-3,
    num_held_out_sequences=64,
    masks_per_sequence=2,
    num_infills=2,
    infill_steps=8,
)
