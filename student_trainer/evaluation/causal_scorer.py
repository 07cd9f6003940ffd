"""A causal language model of transformers as the judge of texts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from masked_diffusion import pretrained
from student_trainer.evaluation.model_spec import DtypeName, ModelSpec
from student_trainer.evaluation.passages import (
    EncodedPassage,
    Passage,
    PassageScores,
    encode,
    num_bytes,
    require_offsets,
)

MAX_LOGIT_ELEMENTS = 2**26
"""Rows times positions times vocabulary of one forward: 256 MiB of float32."""
_PROBE_LENGTH = 6
_FOREIGN_OPTIONS = ("mask_token_id", "alignment", "block_length", "adapter", "quantization")


class CausalScorer:
    """Scores text left to right: exact nats of each token given all before it.

    Every text begins after the tokenizer's bos token (or eos, as GPT-2 is used); with a tokenizer
    that has neither, the first token cannot be judged and is not counted.
    """

    kind = "autoregressive"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str
    ) -> None:
        """Takes a loaded model.

        Raises:
            ValueError: the model is not causal, as a denoiser in the same format is, and would see
                what it has to predict; or its tokenizer is slow.
        """
        require_offsets(tokenizer, name=name)
        self.name = name
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._start_id = (
            tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        )
        self._max_length = getattr(model.config, "max_position_embeddings", None)
        _require_causal(model, name=name)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        *,
        name: str,
        device: torch.device,
        dtype: DtypeName,
        trust_remote_code: bool,
    ) -> "CausalScorer":
        """Loads from a folder or the hub, safetensors only.

        Raises:
            ValueError: no such model, one that is no causal language model, or an option that only
                denoisers have.
        """
        for option in _FOREIGN_OPTIONS:
            if getattr(spec, option):
                raise ValueError(f"{option} is an option of denoisers; leave it out of {name}")
        folder = spec.folder(trust_remote_code=trust_remote_code)
        dtype_name = spec.dtype or dtype
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            tokenizer = pretrained.load_tokenizer(
                folder, config, trust_remote_code=trust_remote_code
            )
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto" if dtype_name == "auto" else getattr(torch, dtype_name),
                device_map=device,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"cannot load scorer {name} as a causal language model; give the path or hub id "
                f"of one with safetensors weights, or masked:{spec.source} for a denoiser "
                f"({reason})"
            ) from error
        if tokenizer is None:
            raise ValueError(f"scorer {name} was saved without a tokenizer; it needs one")
        return cls(model.requires_grad_(False), tokenizer, name=name)

    @torch.inference_mode()
    def score(self, passages: Sequence[Passage], *, batch_size: int) -> PassageScores:
        """See `Scorer.score`."""
        encoded = [self._encode(passage) for passage in passages]
        judged = [max(0, len(e.token_ids) - e.first_judged) for e in encoded]
        nats = np.zeros(len(passages))
        rows = [index for index, count in enumerate(judged) if count]
        # Alike lengths together: less padding.
        rows.sort(key=lambda index: len(encoded[index].token_ids))
        while rows:
            longest = len(encoded[rows[-1]].token_ids)
            fitting = MAX_LOGIT_ELEMENTS // (longest * self._model.config.vocab_size)
            size = max(1, min(batch_size, fitting))
            batch, rows = rows[-size:], rows[:-size]
            nats[batch] = self._nats([encoded[index] for index in batch])
        sizes = num_bytes(passages)
        if self._start_id is None:
            sizes = sizes - self._unjudged_bytes(passages, encoded)
        return PassageScores(
            nats=nats, num_tokens=np.array(judged, dtype=np.int64), num_bytes=sizes
        )

    def _encode(self, passage: Passage) -> EncodedPassage:
        found = encode(passage, self._tokenizer)
        if self._start_id is None:
            first = max(1, found.first_judged)
            ids = found.token_ids
        else:
            first = found.first_judged + 1
            ids = [self._start_id, *found.token_ids]
        if self._max_length is not None and len(ids) > self._max_length:
            raise ValueError(
                f"a sample has {len(ids)} tokens of scorer {self.name}, which takes at most "
                f"{self._max_length}; lower --gen_length, or give another scorer"
            )
        return EncodedPassage(token_ids=ids, first_judged=first)

    def _nats(self, batch: Sequence[EncodedPassage]) -> np.ndarray:
        lengths_B = torch.tensor([len(found.token_ids) for found in batch])
        first_B = torch.tensor([found.first_judged for found in batch])
        width = int(lengths_B.max())
        ids_BL = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, found in enumerate(batch):
            ids_BL[row, : lengths_B[row]] = torch.tensor(found.token_ids)
        places_L = torch.arange(width)
        # Causal attention never looks at padding on the right; the mask keeps models that insist.
        real_BL = places_L < lengths_B[:, None]
        logits_BLV = self._model(
            input_ids=ids_BL.to(self._model.device),
            attention_mask=real_BL.long().to(self._model.device),
        ).logits[:, :-1]
        labels_BL = ids_BL[:, 1:].to(logits_BLV.device)
        log_probs_BL = (
            logits_BLV.float().log_softmax(dim=-1).gather(-1, labels_BL[..., None]).squeeze(-1)
        )
        judged_BL = (real_BL & (places_L >= first_B[:, None]))[:, 1:]
        judged_nats_BL = -log_probs_BL.double().cpu().masked_fill(~judged_BL, 0)
        return judged_nats_BL.sum(dim=1).numpy()

    def _unjudged_bytes(
        self, passages: Sequence[Passage], encoded: Sequence[EncodedPassage]
    ) -> np.ndarray:
        """Bytes of the first token of texts that begin with nothing given."""
        lost = [
            0
            if passage.given or not found.token_ids
            else len(str(self._tokenizer.decode(found.token_ids[:1])).encode())
            for passage, found in zip(passages, encoded, strict=True)
        ]
        return np.array(lost, dtype=np.int64)


@torch.inference_mode()
def _require_causal(model: PreTrainedModel, *, name: str) -> None:
    """Changes the last token of a text and looks whether an earlier position noticed."""
    ids_2L = torch.arange(_PROBE_LENGTH).repeat(2, 1) % model.config.vocab_size
    ids_2L[1, -1] = (ids_2L[1, -1] + 1) % model.config.vocab_size
    logits_2LV: Tensor = model(input_ids=ids_2L.to(model.device)).logits.float()
    difference = (logits_2LV[0, :-1] - logits_2LV[1, :-1]).abs().max()
    # Rows of one batch differ by rounding at most; a token that is seen moves logits far more.
    if float(difference) > 1e-3 * float(logits_2LV.abs().max()):
        raise ValueError(
            f"scorer {name} attends to later tokens, so it would see what it has to predict; give "
            "a causal language model, or masked:PATH for a denoiser"
        )
