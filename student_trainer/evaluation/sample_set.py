"""Sample sets: what was written at one point of the curve, or held-out text in its place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import DenoiserInfo
from student_trainer.evaluation.intervals import ci95_half_width
from student_trainer.evaluation.passages import Passage, decode
from student_trainer.evaluation.text_metrics import distinct_n, unigram_entropy

MAX_N = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSet:
    """N sequences: their written ids, and the same as text with what was given before them."""

    token_ids: list[list[int]]
    """Without what was given; cut before the first end-of-sequence token, unless that is kept."""
    passages: list[Passage]


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """What a low perplexity may hide; of one sample set."""

    entropy_nats: float
    """Mean over samples of the entropy of each one's own ids."""
    entropy_ci95: float
    distinct: dict[int, float | None]
    """n -> share of different n-grams among all n-grams of all samples, n from 1."""
    different_fraction: float
    """Share of samples that no earlier one equals."""
    mean_tokens: float
    """Written ids of a sample."""
    num_empty: int
    """Samples that end before they begin."""


def sample_set(
    x_BL: Tensor,
    *,
    num_given_B: Tensor,
    info: DenoiserInfo,
    tokenizer: PreTrainedTokenizerBase,
    keep_after_eos: bool,
) -> SampleSet:
    """Cuts finished states into what was given and what was written.

    Args:
        x_BL: [B, L] int64.
        num_given_B: [B] int64: leading ids that were given.
        info: Of the vocabulary.
        tokenizer: Likewise.
        keep_after_eos: False cuts before the first end-of-sequence token.
    """
    ends = {info.eos_token_id, tokenizer.sep_token_id} - {None}
    token_ids, passages = [], []
    for x_L, num_given in zip(x_BL.cpu(), num_given_B.tolist(), strict=True):
        written = x_L[num_given:]
        if not keep_after_eos:
            stops = [place for place, token_id in enumerate(written.tolist()) if token_id in ends]
            written = written[: stops[0]] if stops else written
        given = x_L[:num_given]
        token_ids.append(written.tolist())
        passages.append(
            Passage(given=decode(tokenizer, given), text=_written_text(tokenizer, given, written))
        )
    return SampleSet(token_ids=token_ids, passages=passages)


def _written_text(tokenizer: PreTrainedTokenizerBase, given_L: Tensor, written_L: Tensor) -> str:
    # Decoded together: the first space of a piece on its own is lost with some tokenizers. Where
    # a character lies across the border the texts do not fit together, and the piece stands alone.
    given, whole = (decode(tokenizer, ids) for ids in (given_L, torch.cat([given_L, written_L])))
    return whole[len(given) :] if whole.startswith(given) else decode(tokenizer, written_L)


def diversity(samples: SampleSet) -> Diversity:
    """Measures a sample set."""
    entropies = [unigram_entropy(ids) for ids in samples.token_ids]
    num_samples = len(entropies)
    return Diversity(
        entropy_nats=sum(entropies) / num_samples,
        entropy_ci95=ci95_half_width(entropies),
        distinct={n: distinct_n(samples.token_ids, n) for n in range(1, MAX_N + 1)},
        different_fraction=len({tuple(ids) for ids in samples.token_ids}) / num_samples,
        mean_tokens=sum(map(len, samples.token_ids)) / num_samples,
        num_empty=sum(not ids for ids in samples.token_ids),
    )


def passages_as_rows(samples: SampleSet, **facts: object) -> Sequence[dict[str, object]]:
    """One JSON object a sample."""
    return [
        {**facts, "index": index, "given": passage.given, "text": passage.text}
        for index, passage in enumerate(samples.passages)
    ]
