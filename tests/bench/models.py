"""Configurations of the student and the teacher of a workload."""

import math

from transformers import Qwen2Config

from tests.bench.workload import Workload

_MLP_RATIO = 4


def student_config(workload: Workload) -> Qwen2Config:
    """Of a Qwen2 with the usual ratio of widths."""
    return _config(
        workload,
        hidden_size=workload.hidden_size,
        num_layers=workload.num_layers,
        num_heads=workload.num_heads,
    )


def teacher_config(workload: Workload, *, num_parameters: int) -> Qwen2Config:
    """Of one twice as wide, as deep as it takes to have at least this many parameters."""
    width = 2 * workload.hidden_size
    per_layer = (4 + 3 * _MLP_RATIO) * width**2
    num_layers = math.ceil((num_parameters - workload.vocab_size * width) / per_layer)
    return _config(
        workload, hidden_size=width, num_layers=num_layers, num_heads=2 * workload.num_heads
    )


def _config(
    workload: Workload, *, hidden_size: int, num_layers: int, num_heads: int
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=workload.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_MLP_RATIO * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=workload.seq_len,
        tie_word_embeddings=True,
    )
