import copy
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, get_family, self_test
from masked_diffusion.families.info import Alignment
from masked_diffusion.families.qwen2 import Qwen2
from tests import tiny_models


class PadBlind(Qwen2):
    """A family that forgets the attention mask."""

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        return super().raw_hidden_states(input_ids_BL, None)


class Blocks(Qwen2):
    """Sees its own block of four and earlier ones."""

    size: ClassVar[int] = 4

    @classmethod
    def block_length(cls, config: PreTrainedConfig) -> int | None:
        return 4

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        blocks_L = torch.arange(input_ids_BL.shape[1]) // self.size
        seen_B1LL = self._sees(blocks_L).expand(len(input_ids_BL), 1, -1, -1)
        if attention_mask_BL is not None:
            seen_B1LL = seen_B1LL & attention_mask_BL[:, None, None, :]
        return super().raw_hidden_states(input_ids_BL, seen_B1LL)

    def _sees(self, blocks_L: Tensor) -> Tensor:
        return blocks_L[:, None] >= blocks_L[None, :]


class WiderBlocks(Blocks):
    size = 8


class LoneBlocks(Blocks):
    def _sees(self, blocks_L: Tensor) -> Tensor:
        return blocks_L[:, None] == blocks_L[None, :]


class CausalBlocks(Blocks):
    size = 1


class Sociable(Qwen2):
    """A row's values depend on how many there are."""

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        return super().raw_hidden_states(input_ids_BL, attention_mask_BL) * len(input_ids_BL)


def _fresh(alignment: str = "shifted") -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=300)
    config.logit_alignment = alignment
    return checkpoints.new_denoiser(config, None, seed=0, mask_token_id=2)


@pytest.mark.parametrize("alignment", ["shifted", "aligned"])
def test_a_bidirectional_denoiser_passes_and_keeps_its_mode(alignment: str) -> None:
    denoiser = _fresh(alignment)
    self_test(denoiser)
    assert denoiser.training
    self_test(denoiser.eval())
    assert not denoiser.training


@pytest.mark.parametrize("alignment", ["shifted", "aligned"])
def test_a_causal_denoiser_is_refused(alignment: str) -> None:
    denoiser = _fresh(alignment)
    denoiser.model.config.is_causal = True
    with pytest.raises(ValueError, match=r"attends causally.*config\.is_causal=False"):
        self_test(denoiser)


@pytest.mark.parametrize("alignment", ["shifted", "aligned"])
def test_a_denoiser_that_reads_padding_is_refused(alignment: str) -> None:
    denoiser = _fresh(alignment)
    blind = PadBlind(denoiser.model, None, name="blind", mask_token_id=2)
    with pytest.raises(ValueError, match="blind reads its padding"):
        self_test(blind)


def test_a_bfloat16_denoiser_passes(tiny_checkpoint: Path) -> None:
    denoiser = checkpoints.load_denoiser(str(tiny_checkpoint), dtype=torch.bfloat16)
    assert denoiser.head_weight.dtype == torch.bfloat16
    hidden_BLD = denoiser(torch.tensor([[5, 6, 7]]))
    assert hidden_BLD.dtype == torch.bfloat16
    assert denoiser.logits(hidden_BLD).dtype == torch.float32


def test_short_sequences_are_enough() -> None:
    config = tiny_models.qwen2_config(vocab_size=300, max_length=4)
    self_test(checkpoints.new_denoiser(config, None, seed=0, mask_token_id=2))


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown model_type 'mamba'; known: .*qwen2"):
        get_family("mamba")


def _as(family: type[Denoiser], denoiser: Denoiser) -> Denoiser:
    return family(denoiser.model, denoiser.tokenizer, name="odd", mask_token_id=2).eval()


def test_a_block_causal_denoiser_passes() -> None:
    assert self_test(_as(Blocks, _fresh())).batch_error < 1e-6


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (WiderBlocks, r"blocks of 4, but a later block changes an earlier one by .* is full"),
        (LoneBlocks, "a token of an earlier block does not change a later one"),
        (CausalBlocks, "does not change an early position of its block"),
        (Sociable, r"other values in a padded batch than alone: they differ by 5\.0e-01"),
    ],
)
def test_another_attention_than_said_is_refused(family: type[Denoiser], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        self_test(_as(family, _fresh()))


def test_a_forward_that_is_not_finite_is_refused() -> None:
    denoiser = _fresh()
    with torch.no_grad():
        denoiser.head_weight[:] = math.nan
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        self_test(denoiser)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_passes_within_its_own_rounding(
    dtype: torch.dtype, trained_aligned: Denoiser, tiny_checkpoint: Path
) -> None:
    tiny = checkpoints.load_denoiser(str(tiny_checkpoint), dtype=dtype)
    assert self_test(tiny).probe.verdict == "inconclusive"
    again = copy.deepcopy(trained_aligned).to(dtype)
    assert self_test(again).probe.verdict == "aligned"


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
def test_a_trained_denoiser_passes_rightly_aligned_and_is_refused_otherwise(
    alignment: Alignment, trained_aligned: Denoiser, trained_shifted: Denoiser
) -> None:
    denoiser = {"aligned": trained_aligned, "shifted": trained_shifted}[alignment]
    report = self_test(denoiser)
    assert report.probe.verdict == alignment
    assert report.seconds < 2.0

    wrong = copy.deepcopy(denoiser.model)
    other = "shifted" if alignment == "aligned" else "aligned"
    wrong.config.logit_alignment = other
    misread = Qwen2(wrong, denoiser.tokenizer, name="misread", mask_token_id=2)
    with pytest.raises(ValueError) as raised:
        self_test(misread)
    assert f"misread is loaded as {other}, but was trained {alignment}" in str(raised.value)
    assert f"give --alignment {alignment}" in str(raised.value)
    assert self_test(misread, check_alignment=False).probe.verdict == alignment
