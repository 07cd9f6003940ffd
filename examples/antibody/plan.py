"""Sizes of the example: how many sequences, how long the training."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that makes one run differ from another."""

    num_train_sequences: int
    num_held_out_sequences: int
    sampling_steps: int
    """Denoising steps of a trajectory; a sequence has about 115 positions."""
    min_length: int = 105
    max_length: int = 126
    """Residues of a sequence: variable domains, light chains and heavy ones."""
    student_layers: int = 3
    student_width: int = 256
    student_heads: int = 4
    train_steps: int
    micro_batch_size: int = 8
    """Sequences of one rank and optimizer step."""
    num_ranks: int = 2
    lr: float = 1e-3
    masks_per_sequence: int
    """Of a held-out sequence, in the evaluation."""
    num_samples: int
    """Sequences that each model writes, to be judged."""
    seed: int = 0


FULL = Plan(
    num_train_sequences=176,
    num_held_out_sequences=48,
    sampling_steps=16,
    train_steps=200,
    masks_per_sequence=4,
    num_samples=32,
)
QUICK = Plan(
    num_train_sequences=32,
    num_held_out_sequences=8,
    sampling_steps=8,
    train_steps=24,
    masks_per_sequence=2,
    num_samples=6,
)
