"""Diversity of sampled sequences: what a low perplexity may hide."""

from collections.abc import Sequence

import numpy as np


def unigram_entropy(token_ids: Sequence[int]) -> float:
    """Returns the entropy, in nats, of the frequencies of the ids within one sequence.

    Between 0 (one id again and again) and log of the length (no id twice), so only sequences of
    about one length can be compared. 0 for an empty one.

    Source: Zheng et al., arXiv:2409.02908 (as a guard beside generative perplexity).
    """
    _, counts = np.unique(np.asarray(token_ids, dtype=np.int64), return_counts=True)
    shares = counts / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no minus zero


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> float | None:
    """Returns the share of different n-grams among all n-grams of all sequences.

    In (0, 1]; falls with the number and the length of the sequences, so only sets of one size can
    be compared. None where no sequence has n tokens.

    Source: Li et al., arXiv:1510.03055 (distinct-1 and distinct-2).
    """
    grams = [
        tuple(sequence[start : start + n])
        for sequence in sequences
        for start in range(len(sequence) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None
