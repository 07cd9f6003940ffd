"""How much a sequence looks like an antibody's variable domain, to a pattern and to the teacher."""

import math
import re
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from protos import codec
from student_trainer import wire
from student_trainer.client import TeacherClient

FRAMEWORK = re.compile(r"C.{9,18}W.{45,66}C.{3,34}[FW]G.G")
"""What the fold needs: two cysteines that bind each other, the tryptophan between them, and the
motif of the joining segment (IMGT positions 23, 41, 104, 118 to 121), at the distances in which
human V domains have them."""
NUM_PARTS = 8
"""Positions are hidden an eighth at a time, about the share that AntiBERTy was trained at."""


def framework_fraction(sequences: Sequence[str]) -> float:
    """The share of sequences with the framework's conserved residues in place."""
    return sum(FRAMEWORK.search(sequence) is not None for sequence in sequences) / len(sequences)


def distinct_fraction(sequences: Sequence[str]) -> float:
    """The share of sequences that differ from all others: 1 where nothing repeats."""
    return len(set(sequences)) / len(sequences)


def pseudo_perplexity(
    address: str, tokenizer: PreTrainedTokenizerFast, sequences: Sequence[str]
) -> float:
    """The served model's perplexity of residues, each hidden once, an eighth of them at a time.

    The exponential of the mean negative log-probability; 20 if every residue were as good as any.
    """
    total, count = 0.0, 0
    with TeacherClient(address) as client:
        mask = client.describe().mask_token_id
        truths, states = [], []
        for sequence in sequences:
            ids_L = np.array(tokenizer(sequence)["input_ids"])
            places_L = np.arange(1, len(ids_L) - 1)
            for part in range(NUM_PARTS):
                state_L = ids_L.copy()
                state_L[places_L[part::NUM_PARTS]] = mask
                truths.append(ids_L)
                states.append(state_L)
        spec = wire.TargetSpec(encoding="logits")
        for record in client.score(states, sequence_ids=range(len(states)), targets=spec):
            assert isinstance(record.distribution, codec.Logits)
            log_probs_MV = record.distribution.values.data
            truth_M = truths[record.sequence_id][record.positions]
            total -= float(log_probs_MV[np.arange(len(truth_M)), truth_M].sum(dtype=np.float64))
            count += len(truth_M)
    return math.exp(total / count)
