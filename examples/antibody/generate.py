"""Sequences from a served model, over gRPC, and files of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from student_trainer import wire
from student_trainer.client import TeacherClient

ALGORITHM = "maskgit_plus"
ORDER_TEMPERATURE = 0.5
"""Without it the surest positions come first in every sequence, and all begin alike."""
AMINO_ACIDS = frozenset("ACDEFGHIKLMNPQRSTVWY")


def draw_lengths(num: int, *, low: int, high: int, seed: int) -> list[int]:
    """Draws residues of each sequence, uniform in [low, high]."""
    return np.random.default_rng(seed).integers(low, high + 1, size=num).tolist()


def generate(
    address: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    lengths: Sequence[int],
    num_steps: int,
    seed: int,
) -> list[str]:
    """Samples one sequence of each length at temperature 1 from nothing but masks.

    AntiBERTy is told neither species nor chain: those are outputs of its classifiers, so what is
    sampled is its own mixture of both.

    Returns:
        Residues, without what stands around them; a special token in between, which the model may
        draw, leaves its sequence shorter than asked for.
    """
    sampler = wire.SamplerSpec(
        algorithm=ALGORITHM, num_steps=num_steps, temperature=1.0, alg_temp=ORDER_TEMPERATURE
    )
    with TeacherClient(address) as client:
        mask = client.describe().mask_token_id
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        starts = [np.array([first, *[mask] * length, last]) for length in lengths]
        items = client.sample(
            starts,
            sequence_ids=range(len(starts)),
            seeds=[seed] * len(starts),
            sampler=sampler,
            capture=wire.CaptureSpec(),
            targets=wire.TargetSpec(),
        )
        ends = {item.sequence_id: item for item in items if isinstance(item, wire.Trajectory)}
    rows = [ends[index].token_ids_L.tolist() for index in range(len(starts))]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def is_whole(sequence: str, length: int) -> bool:
    """Tells whether every position holds an amino acid."""
    return len(sequence) == length and set(sequence) <= AMINO_ACIDS


def write_sequences(sequences: Sequence[str], path: Path) -> None:
    """Writes one {"text": ...} row each, as the trainer reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"text": sequence}) + "\n" for sequence in sequences)
    path.write_text(rows, encoding="utf-8")


def read_sequences(path: Path) -> list[str]:
    """Reads what `write_sequences` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
