"""Checks on a loaded denoiser that catch a wrong attention, padding that is read, a wrong shift."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families.alignment_probe import AlignmentProbe, probe_alignment
from masked_diffusion.families.base import Denoiser, padding_mask
from masked_diffusion.families.rounding import ROUNDING

TEST_LENGTH = 8
NUM_PADS = 3
MIN_RELATIVE_CHANGE = 1e-6
"""Of the largest hidden value. A causal or pad-blind forward repeats its numbers exactly, since
shapes and kernels are the same; a seen token moves them by far more."""
PROBE_TIME = 0.5


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """What a denoiser that passed was found to be."""

    batch_error: float
    """Largest change of a row between padded batch and alone, over the largest hidden value."""
    probe: AlignmentProbe
    seconds: float

    def __str__(self) -> str:
        return (
            f"passed in {self.seconds:.2f} s; batched against alone {self.batch_error:.1e}; "
            f"alignment probe: {self.probe}"
        )


@torch.no_grad()
def self_test(denoiser: Denoiser, *, check_alignment: bool = True) -> SelfTestReport:
    """Proves that attention is what the family says, that padding is not seen, and the alignment.

    Bidirectional attention is lost without a word in several releases and call styles of
    transformers, for every row, as soon as one row is padded; hence the padded batch.

    Args:
        denoiser: Its mode is left as it was.
        check_alignment: False reports the probe's verdict without judging by it.

    Raises:
        ValueError: the forward is not finite; a late token does not change an early position (of
            its block), or a later block changes an earlier one; the content of the padding, or a
            row's company in a batch, changes it; or the model is clearly trained for the other
            alignment. The message says which, with the numbers, and how to mend it.
    """
    was_training = denoiser.training
    started_s = time.monotonic()
    denoiser.eval()
    try:
        batch_error = _Check(denoiser).run()
        probe = probe_alignment(denoiser)
    finally:
        denoiser.train(was_training)
    if check_alignment and probe.verdict not in ("inconclusive", denoiser.info.alignment):
        raise ValueError(
            f"{denoiser.info.name} is loaded as {denoiser.info.alignment}, but was trained "
            f"{probe}; give --alignment {probe.verdict} (alignment={probe.verdict!r}), or write "
            "it as logit_alignment into config.json"
        )
    return SelfTestReport(
        batch_error=batch_error, probe=probe, seconds=time.monotonic() - started_s
    )


class _Check:
    """A padded batch of two rows, and what changes when one of its tokens does.

    Raw states are compared, so that the alignment does not matter.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._name = denoiser.info.name
        self._first_id, self._other_id = _two_ordinary_ids(denoiser)
        block_length = denoiser.info.block_length
        wanted = TEST_LENGTH if block_length is None else 2 * block_length
        length = min(wanted, denoiser.info.max_length)
        num_pads = max(1, min(NUM_PADS, (length if block_length is None else block_length) - 3))
        self._lengths_B = torch.tensor([length, length - num_pads], device=denoiser.device)
        self._ids_BL = torch.full((2, length), self._first_id, device=denoiser.device)
        mask_BL = padding_mask(self._lengths_B, length)
        assert mask_BL is not None
        self._mask_BL = mask_BL
        self._base_BLD = self._states(self._ids_BL, mask_BL)
        self._scale = self._base_BLD.abs().amax()

    def run(self) -> float:
        """Runs every check; gives the relative error of batched against alone."""
        if not bool(torch.isfinite(self._base_BLD[self._mask_BL]).all()):
            raise ValueError(
                f"{self._name} gives values that are not finite in {self._base_BLD.dtype}; load "
                "it with --dtype float32 or bfloat16, or its weights are damaged"
            )
        self._check_attention()
        self._check_padding()
        return self._check_company()

    def _states(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        times_B = torch.full((len(ids_BL),), PROBE_TIME, device=ids_BL.device)
        return self._denoiser.raw_hidden_states(ids_BL, mask_BL, times_B=times_B)

    def _change(self, changed_BLD: Tensor) -> Tensor:
        """Compares per position: [B, L] float32, the largest change over the largest value."""
        change_BL = (changed_BLD - self._base_BLD).abs().amax(-1)
        return (change_BL / self._scale).float().masked_fill(~self._mask_BL, 0.0)

    def _change_by(self, positions_B: Tensor) -> Tensor:
        """What another token at one position of each row changes, [B, L]."""
        ids_BL = self._ids_BL.scatter(1, positions_B[:, None], self._other_id)
        return self._change(self._states(ids_BL, self._mask_BL))

    def _check_attention(self) -> None:
        late_BL = self._change_by(self._lengths_B - 1)
        block_length = self._denoiser.info.block_length
        first = 0 if block_length is None else (self._ids_BL.shape[1] - 1) // block_length
        early = first * (block_length or 0)
        has_block_B = self._lengths_B > early
        if bool((late_BL[has_block_B, early] <= MIN_RELATIVE_CHANGE).any()):
            raise ValueError(
                f"{self._name} attends causally: in a padded batch a late token does not "
                f"change an early position{' of its block' if block_length else ''}; a "
                "masked-diffusion denoiser needs config.is_causal=False and transformers 5.2 or "
                "newer"
            )
        if block_length is None or early == 0:
            return
        if bool((late_BL[:, :early] > self._tolerance).any()):
            raise ValueError(
                f"{self._name} is block-causal with blocks of {block_length}, but a later block "
                f"changes an earlier one by {float(late_BL[:, :early].max()):.1e} of the largest "
                "value; its block length is another one, or its attention is full"
            )
        earlier_BL = self._change_by(torch.full_like(self._lengths_B, early - 1))
        if bool((earlier_BL[has_block_B, early] <= MIN_RELATIVE_CHANGE).any()):
            raise ValueError(
                f"{self._name} is block-causal with blocks of {block_length}, but a token of an "
                "earlier block does not change a later one"
            )

    def _check_padding(self) -> None:
        padded_BL = self._ids_BL.masked_fill(~self._mask_BL, self._other_id)
        change_BL = self._change(self._states(padded_BL, self._mask_BL))
        if bool((change_BL > self._tolerance).any()):
            raise ValueError(
                f"{self._name} reads its padding: the ids of padded positions change real "
                "positions, so results would depend on the batch; the attention mask is not "
                "honoured"
            )

    def _check_company(self) -> float:
        """Compares the padded row with the same row alone."""
        length = int(self._lengths_B[1])
        alone_LD = self._states(self._ids_BL[1:, :length], None)[0]
        error = float((alone_LD - self._base_BLD[1, :length]).abs().amax() / self._scale)
        limit = ROUNDING[alone_LD.dtype]
        if not error <= limit:
            raise ValueError(
                f"{self._name} gives a row other values in a padded batch than alone: they differ "
                f"by {error:.1e} of the largest one, more than rounding ({limit:.0e}); positions "
                "or attention depend on the padding"
            )
        return error

    @property
    def _tolerance(self) -> float:
        """Of what is not seen; above zero since routed experts compute in other shapes."""
        return max(MIN_RELATIVE_CHANGE, 8 * torch.finfo(self._base_BLD.dtype).eps)


def _two_ordinary_ids(denoiser: Denoiser) -> tuple[int, int]:
    special = set(denoiser.info.special_token_ids)
    ordinary = (i for i in range(denoiser.info.vocab_size) if i not in special)
    return next(ordinary), next(ordinary)
