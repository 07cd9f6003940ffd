"""Generates texts: masks after a prompt, filled in by a sampler."""

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import Denoiser
from masked_diffusion.sampling import sample
from student_trainer.tasks.decoding import Decoding

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt, and how it is continued."""

    prompt_ids: tuple[int, ...]
    decoding: Decoding


def generate(
    denoiser: Denoiser, requests: Sequence[GenerationRequest], *, seed: int, batch_size: int
) -> list[str]:
    """Continues prompts with text, up to its end or a stop text; see `generate_ids`.

    Raises:
        ValueError: no tokenizer, or as `generate_ids`.
    """
    if denoiser.tokenizer is None:
        raise ValueError(f"{denoiser.info.name} was saved without a tokenizer; tasks need it")
    ends = end_token_ids(denoiser)
    answers = generate_ids(denoiser, requests, seed=seed, batch_size=batch_size)
    return [
        read_answer(ids, denoiser.tokenizer, end_token_ids=ends, until=request.decoding.until)
        for ids, request in zip(answers, requests, strict=True)
    ]


def generate_ids(
    denoiser: Denoiser, requests: Sequence[GenerationRequest], *, seed: int, batch_size: int
) -> list[list[int]]:
    """Continues prompts by all the new tokens asked for, those of similar length together.

    What is drawn depends on the seed, the prompt and how often the same request came before, so
    that the samples of one prompt differ and a request's answer does not depend on the others.

    Args:
        denoiser: In evaluation mode.
        requests: In any order; answers keep it.
        seed: Of all draws.
        batch_size: Sequences that are sampled together, at most.

    Raises:
        ValueError: a prompt with its new tokens is longer than the denoiser's maximum, or empty
            where the denoiser cannot predict the first position.
    """
    for request in requests:
        _check_length(request, denoiser)
    keys = _request_keys(requests)
    answers: list[list[int]] = [[] for _ in requests]
    num_done = 0
    for rows in _batches(requests, batch_size):
        batch = [requests[row] for row in rows]
        sampled = _sample(denoiser, batch, seed=seed, sequence_ids=[keys[row] for row in rows])
        for row, ids in zip(rows, sampled, strict=True):
            answers[row] = ids
        num_done += len(rows)
        logger.info("generated num_done=%d num_requests=%d", num_done, len(requests))
    return answers


def end_token_ids(denoiser: Denoiser) -> frozenset[int]:
    """Finds the ids that end a text: the tokenizer's, and those of the generation config."""
    ends = {denoiser.info.eos_token_id}
    generation_config = getattr(denoiser.model, "generation_config", None)
    more = getattr(generation_config, "eos_token_id", None)
    ends.update(more if isinstance(more, list) else [more])
    return frozenset(end for end in ends if end is not None)


def read_answer(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_token_ids: Collection[int],
    until: Sequence[str],
) -> str:
    """Turns generated ids into text, up to the first token or text that ends it.

    Special tokens count as text while stop texts are looked for, since a stop text may be one
    (the end of a turn), and are then taken out.
    """
    before_end = itertools.takewhile(lambda token_id: token_id not in end_token_ids, ids)
    text = tokenizer.decode(list(before_end), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    ends = [text.find(stop) for stop in until]
    text = text[: min((end for end in ends if end >= 0), default=len(text))]
    for token in sorted(special_tokens(tokenizer), key=len, reverse=True):
        text = text.replace(token, "")
    return text


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Lists the texts of all special tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}


def _check_length(request: GenerationRequest, denoiser: Denoiser) -> None:
    length = len(request.prompt_ids) + request.decoding.max_new_tokens
    if length > denoiser.info.max_length:
        raise ValueError(
            f"a prompt of {len(request.prompt_ids)} tokens and max_new_tokens="
            f"{request.decoding.max_new_tokens} exceed the {denoiser.info.max_length} positions of "
            f"{denoiser.info.name}; lower max_new_tokens"
        )
    if len(request.prompt_ids) < denoiser.info.num_invalid_leading_positions:
        raise ValueError(
            f"the prompt is empty, and {denoiser.info.name} cannot predict the first position; "
            "give add_bos_token=true, or a prompt"
        )


def _request_keys(requests: Sequence[GenerationRequest]) -> list[int]:
    """Names each request by its prompt and by how many equal ones came before it."""
    seen: Counter[GenerationRequest] = Counter()
    keys = []
    for request in requests:
        keys.append(key_of(request.prompt_ids, repeat=seen[request]))
        seen[request] += 1
    return keys


def key_of(ids: Sequence[int], *, repeat: int = 0) -> int:
    """Digests token ids and a counter to a number that belongs to them."""
    digest = hashlib.blake2b(f"{repeat}:{','.join(map(str, ids))}".encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "little")


def _batches(requests: Sequence[GenerationRequest], batch_size: int) -> Iterator[list[int]]:
    """Yields rows with one decoding, the longest first: what does not fit is known at once."""
    by_decoding: defaultdict[Decoding, list[int]] = defaultdict(list)
    for row, request in enumerate(requests):
        by_decoding[request.decoding].append(row)
    for rows in by_decoding.values():
        rows.sort(key=lambda row: -len(requests[row].prompt_ids))
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _sample(
    denoiser: Denoiser, batch: Sequence[GenerationRequest], *, seed: int, sequence_ids: list[int]
) -> list[list[int]]:
    """Returns the new ids of each request."""
    decoding = batch[0].decoding
    lengths_B = torch.tensor([len(r.prompt_ids) + decoding.max_new_tokens for r in batch])
    x_BL = torch.full((len(batch), int(lengths_B.max())), denoiser.info.mask_token_id)
    frozen_BL = torch.zeros_like(x_BL, dtype=torch.bool)
    for row, request in enumerate(batch):
        x_BL[row, : len(request.prompt_ids)] = torch.tensor(request.prompt_ids, dtype=torch.int64)
        frozen_BL[row, : len(request.prompt_ids)] = True
    result_BL = sample(
        denoiser,
        x_BL,
        frozen_BL=frozen_BL,
        lengths_B=lengths_B,
        config=decoding.sampler,
        seeds=[seed] * len(batch),
        sequence_ids=sequence_ids,
    ).x
    rows = zip(result_BL.tolist(), batch, lengths_B.tolist(), strict=True)
    return [row[len(request.prompt_ids) : length] for row, request, length in rows]
