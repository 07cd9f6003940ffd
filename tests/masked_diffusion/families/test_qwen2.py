from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from masked_diffusion import checkpoints
from masked_diffusion.families import EXCLUDED_LOGIT, Denoiser, padding_mask
from tests import tiny_models


@pytest.fixture(scope="module", name="ids_BL")
def three_rows() -> Tensor:
    return torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_later_token_changes_every_earlier_position(
    tiny_denoiser: Denoiser, ids_BL: Tensor
) -> None:
    lengths_B = torch.tensor([12, 7, 9])
    changed_BL = ids_BL.scatter(1, lengths_B[:, None] - 1, 201)
    for mask_BL in (None, padding_mask(lengths_B, 12)):
        change_BL = (
            (tiny_denoiser(changed_BL, mask_BL) - tiny_denoiser(ids_BL, mask_BL)).abs().amax(-1)
        )
        for b, length in enumerate(lengths_B.tolist()):
            assert bool((change_BL[b, :length] > 1e-4).all())


@torch.no_grad()
def test_a_padded_batch_equals_single_rows(tiny_denoiser: Denoiser, ids_BL: Tensor) -> None:
    lengths_B = torch.tensor([12, 7, 1])
    padded_BLD = tiny_denoiser(ids_BL, padding_mask(lengths_B, 12))
    assert bool(padded_BLD.isfinite().all())
    for b, length in enumerate(lengths_B.tolist()):
        single_LD = tiny_denoiser(ids_BL[b : b + 1, :length])[0]
        torch.testing.assert_close(padded_BLD[b, :length], single_LD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_row_p_is_the_raw_models_row_before_it(
    tiny_checkpoint: Path, tiny_denoiser: Denoiser, ids_BL: Tensor
) -> None:
    raw = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint).eval()
    raw_logits_BLV = raw(input_ids=ids_BL).logits
    info = tiny_denoiser.info
    logits_BLV = tiny_denoiser.logits(tiny_denoiser(ids_BL))
    assert logits_BLV.shape[-1] == info.vocab_size < info.padded_vocab_size
    assert bool((logits_BLV[..., info.mask_token_id] == EXCLUDED_LOGIT).all())
    others = [v for v in range(info.vocab_size) if v != info.mask_token_id]
    # The same numbers through a product of other width: the last bits may differ.
    torch.testing.assert_close(
        logits_BLV[:, 1:, others], raw_logits_BLV[:, :-1, others], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        logits_BLV[:, 0, others], raw_logits_BLV[:, 0, others], atol=1e-5, rtol=1e-5
    )
    assert info.num_invalid_leading_positions == 1


@torch.no_grad()
def test_an_aligned_checkpoint_is_not_shifted(ids_BL: Tensor) -> None:
    config = tiny_models.qwen2_config(vocab_size=300)
    shifted = checkpoints.new_denoiser(config, None, seed=1, mask_token_id=2).eval()
    config.logit_alignment = "aligned"
    aligned = checkpoints.new_denoiser(config, None, seed=1, mask_token_id=2).eval()
    assert aligned.info.num_invalid_leading_positions == 0
    assert torch.equal(shifted(ids_BL)[:, 1:], aligned(ids_BL)[:, :-1])


def test_a_trained_model_predicts_token_p_at_position_p() -> None:
    """On rows that count upwards, the token at p, p - 1 and p + 1 are three different ids."""
    vocab_size, length, mask = 24, 12, 23
    config = tiny_models.qwen2_config(vocab_size=vocab_size)
    denoiser = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=mask)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        first_B1 = torch.randint(0, 20, (num_rows, 1), generator=generator)
        x0_BL = (first_B1 + torch.arange(length)) % 20
        masked_BL = torch.rand(num_rows, length, generator=generator) < 0.5
        masked_BL[:, 0] = False
        return x0_BL, x0_BL.masked_fill(masked_BL, mask), masked_BL

    for _ in range(120):
        x0_BL, xt_BL, masked_BL = batch(16)
        logits_MV = denoiser.logits(denoiser(xt_BL)[masked_BL])
        loss = torch.nn.functional.cross_entropy(logits_MV, x0_BL[masked_BL])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x0_BL, xt_BL, masked_BL = batch(200)
    with torch.no_grad():
        predicted_M = denoiser.logits(denoiser(xt_BL)[masked_BL]).argmax(-1)
    accuracy = (predicted_M == x0_BL[masked_BL]).double().mean().item()
    assert accuracy > 0.95


def test_gradients_reach_body_and_head(tiny_checkpoint: Path, ids_BL: Tensor) -> None:
    denoiser = checkpoints.load_denoiser(str(tiny_checkpoint))
    denoiser.logits(denoiser(ids_BL))[..., :2].sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
    # Padded rows and the mask's own row get no gradient from the head; untied, none at all.
    untied = checkpoints.new_denoiser(
        tiny_models.qwen2_config(vocab_size=320, tie_word_embeddings=False),
        denoiser.tokenizer,
        seed=0,
    )
    untied.logits(untied(ids_BL)).logsumexp(-1).sum().backward()
    gradient_VD = untied.head_weight.grad
    assert gradient_VD is not None
    touched_V = gradient_VD.abs().sum(-1) > 0
    assert touched_V.nonzero().flatten().tolist() == [v for v in range(300) if v != 2]


def test_sliding_windows_are_refused() -> None:
    config = tiny_models.qwen2_config(vocab_size=300)
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="use_sliding_window must be false"):
        checkpoints.new_denoiser(config, None, seed=0, mask_token_id=2)


def test_padding_mask_is_none_without_padding() -> None:
    assert padding_mask(torch.tensor([4, 4]), 4) is None
    mask_BL = padding_mask(torch.tensor([4, 2]), 4)
    assert mask_BL is not None
    assert mask_BL.tolist() == [[True] * 4, [True, True, False, False]]
