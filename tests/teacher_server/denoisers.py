"""A real denoiser whose forwards a test can hold up, count and make fail."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families import Denoiser
from masked_diffusion.families.qwen2 import Qwen2

WAIT_S = 30.0


class ControlledDenoiser(Qwen2):
    """Computes what it was made from computes; forwards of proofs are let through uncounted."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(
            denoiser.model,
            denoiser.tokenizer,
            name=denoiser.info.name,
            mask_token_id=denoiser.info.mask_token_id,
        )
        self.eval().requires_grad_(False)
        self.poison_id = -1
        """A forward that holds this id raises."""
        self.poison_error: type[Exception] = RuntimeError
        self.is_broken = False
        """Every forward raises, proofs too."""
        self.num_proofs = 0
        self.batches: list[Tensor] = []
        """[B, L] ids of every forward, padding at 0."""
        self._changed = threading.Condition()
        self._num_allowed = math.inf
        self._is_held = False

    def hold(self) -> None:
        """Holds forwards up from now on."""
        with self._changed:
            self._num_allowed = 0

    def allow(self, num_forwards: float = math.inf) -> None:
        """Lets that many forwards through, then holds them up again."""
        with self._changed:
            self._num_allowed = num_forwards
            self._is_held = False
            self._changed.notify_all()

    def wait_held(self) -> None:
        """Waits until a forward is being held up."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_held, timeout=WAIT_S)

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        times_B: Tensor | None = None,
        clean_ids_BL: Tensor | None = None,
    ) -> Tensor:
        self._before(input_ids_BL)
        with torch.no_grad():
            return super().hidden_states(
                input_ids_BL, attention_mask_BL, times_B=times_B, clean_ids_BL=clean_ids_BL
            )

    def ragged_hidden_states(self, input_ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        self._before(pad_sequence(list(input_ids_T.split(list(lengths))), batch_first=True))
        with torch.no_grad():
            return super().ragged_hidden_states(input_ids_T, lengths)

    def _before(self, input_ids_BL: Tensor) -> None:
        if self.is_broken:
            raise RuntimeError("out of order")
        # A proof is masks alone, and nothing else is that short.
        is_proof = input_ids_BL.shape[1] <= 4 and bool(
            (input_ids_BL == self.info.mask_token_id).all()
        )
        self.num_proofs += is_proof
        if not is_proof:
            self.batches.append(input_ids_BL.clone())
            self._pass()
        if bool((input_ids_BL == self.poison_id).any()):
            raise self.poison_error("poisoned forward")

    def _pass(self) -> None:
        with self._changed:
            self._is_held = self._num_allowed < 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._num_allowed >= 1, timeout=WAIT_S)
            self._is_held = False
            self._num_allowed -= 1
