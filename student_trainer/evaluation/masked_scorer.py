"""A denoiser as the judge of texts, by its likelihood bound."""

from collections.abc import Sequence

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from student_trainer.batches import SequenceBatch
from student_trainer.evaluation.likelihood import nelbo_by_sequence
from student_trainer.evaluation.passages import (
    Passage,
    PassageScores,
    encode,
    num_bytes,
    require_offsets,
)
from student_trainer.evaluation.states import maskable_in, states_of


class MaskedScorer:
    """Scores text by the NELBO: an upper bound in nats, estimated with fixed masks.

    Its exponential per token is a pseudo-perplexity; it is no lower bound on anything that a causal
    model says, so the two kinds of scorer are not to be compared.
    """

    kind = "masked"

    def __init__(self, denoiser: Denoiser, *, name: str, seed: int, masks_per_passage: int) -> None:
        """Takes a loaded denoiser.

        Raises:
            ValueError: uniform noise, which has no such bound here; or no fast tokenizer.
        """
        if denoiser.info.noise != "absorbing":
            raise ValueError(
                f"scorer {name} has {denoiser.info.noise} noise, and the bound holds for masks "
                "only; give another scorer"
            )
        if denoiser.tokenizer is None:
            raise ValueError(f"scorer {name} was saved without a tokenizer; it needs one")
        require_offsets(denoiser.tokenizer, name=name)
        self.name = name
        self._denoiser = denoiser
        self._tokenizer = denoiser.tokenizer
        self._seed = seed
        self._masks_per_passage = masks_per_passage

    def score(self, passages: Sequence[Passage], *, batch_size: int) -> PassageScores:
        """See `Scorer.score`. Special tokens (an unknown one) are neither judged nor counted."""
        batch = self._batch(passages)
        num_tokens = maskable_in(batch, self._denoiser.info).sum(dim=1).numpy()
        nats = np.zeros(len(passages))
        filled = np.flatnonzero(num_tokens)
        if len(filled):
            rows = torch.from_numpy(filled)
            states = states_of(
                SequenceBatch(
                    batch.input_ids_BL[rows], batch.lengths_B[rows], batch.prompt_lengths_B[rows]
                ),
                denoiser_info=self._denoiser.info,
                seed=self._seed,
                masks_per_sequence=self._masks_per_passage,
            )
            per_token = nelbo_by_sequence(self._denoiser, states, batch_size=batch_size)
            nats[filled] = per_token * num_tokens[filled]
        return PassageScores(
            nats=nats,
            num_tokens=num_tokens,
            num_bytes=np.where(num_tokens > 0, num_bytes(passages), 0),
        )

    def _batch(self, passages: Sequence[Passage]) -> SequenceBatch:
        tokenizer, info = self._tokenizer, self._denoiser.info
        # As training data are framed: with bos, which encoders call [CLS].
        firsts = (tokenizer.bos_token_id, tokenizer.cls_token_id)
        head = [token_id for token_id in firsts if token_id is not None][:1]
        encoded = [encode(passage, tokenizer) for passage in passages]
        lengths = [len(head) + len(found.token_ids) for found in encoded]
        if max(lengths) > info.max_length:
            raise ValueError(
                f"a sample has {max(lengths)} tokens of scorer {self.name}, which takes at most "
                f"{info.max_length}; lower --gen_length, or give another scorer"
            )
        ids_BL = torch.zeros(len(passages), max(1, *lengths), dtype=torch.int64)
        for row, found in enumerate(encoded):
            ids_BL[row, : lengths[row]] = torch.tensor([*head, *found.token_ids], dtype=torch.int64)
        return SequenceBatch(
            ids_BL,
            torch.tensor(lengths),
            torch.tensor([len(head) + found.first_judged for found in encoded]),
        )
