from pathlib import Path

import pytest
import torch
from torch import Tensor

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, get_family, self_test
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
    with pytest.raises(ValueError, match=r"unknown model_type 'llama'; known: .*qwen2"):
        get_family("llama")
