from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser, block_masks, padding_mask
from masked_diffusion.families.llada2 import Llada2Moe
from tests.fixtures import block_diffusion
from tests.fixtures.block_diffusion import FIXTURES, MASK_ID
from tests.fixtures.block_reference import BlockReference

# Largest logits are about 3; float32 against float64 through three layers.
ATOL = 1e-5


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda fixture: fixture.name)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Denoiser, BlockReference]:
    fixture = request.param
    folder = tmp_path_factory.mktemp(fixture.name)
    fixture.build(folder)
    denoiser = load_denoiser(str(folder), **fixture.load_options)
    assert denoiser.info.block_length is not None
    reference = BlockReference(
        folder,
        block_length=denoiser.info.block_length,
        shifted=denoiser.info.alignment == "shifted",
    )
    return denoiser, reference


def _clean_and_state(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean_L = torch.randint(3, 290, (length,), generator=generator)
    return clean_L, clean_L.masked_fill(torch.rand(length, generator=generator) < 0.5, MASK_ID)


def _logits(denoiser: Denoiser, hidden: Tensor) -> Tensor:
    return hidden.double() @ denoiser.head_weight.double().T


def _sees(query: int, key: int, length: int, block_length: int) -> bool:
    """The three masks of the paper, place by place."""
    same = (query % length) // block_length == (key % length) // block_length
    after = (query % length) // block_length > (key % length) // block_length
    if query < length:
        return same if key < length else after
    return key >= length and (same or after)


@pytest.mark.parametrize(("length", "block_length"), [(7, 3), (8, 4), (5, 8), (4, 1)])
def test_two_streams_see_what_the_paper_says(length: int, block_length: int) -> None:
    real_BL = torch.ones(2, length, dtype=torch.bool)
    real_BL[1, length - 2 :] = False
    seen = block_masks.two_stream(real_BL, block_length=block_length)
    one = block_masks.block_causal(real_BL, block_length=block_length)
    for b in range(2):
        for q in range(2 * length):
            for k in range(2 * length):
                expected = _sees(q, k, length, block_length) and bool(real_BL[b, k % length])
                assert bool(seen[b, q, k]) == (expected or q == k)
        assert torch.equal(one[b], seen[b, length:, length:])


def test_a_mask_is_finite_and_hides_by_adding() -> None:
    seen = torch.tensor([[[True, False], [False, False]]])
    for dtype in (torch.float32, torch.bfloat16):
        mask = block_masks.additive(seen, dtype)
        assert mask.dtype == dtype and mask.shape == (1, 1, 2, 2)
        assert bool(mask.isfinite().all())
        weights = (torch.zeros(2, 2, dtype=dtype) + mask[0, 0]).softmax(-1)
        assert weights[0].tolist() == [1.0, 0.0]


@torch.no_grad()
def test_a_state_alone_equals_the_reference(loaded: tuple[Denoiser, BlockReference]) -> None:
    denoiser, reference = loaded
    _, state_L = _clean_and_state(21)
    logits_LV = _logits(denoiser, denoiser(state_L[None])[0])
    torch.testing.assert_close(logits_LV, reference.logits(state_L), atol=ATOL, rtol=0)


@torch.no_grad()
def test_two_streams_equal_one_block_at_a_time(loaded: tuple[Denoiser, BlockReference]) -> None:
    denoiser, reference = loaded
    clean_L, state_L = _clean_and_state(21)
    hidden_LD = denoiser(state_L[None], clean_ids_BL=clean_L[None])[0]
    expected = reference.logits_given_clean(state_L, clean_L)
    torch.testing.assert_close(_logits(denoiser, hidden_LD), expected, atol=ATOL, rtol=0)
    assert bool(((denoiser(state_L[None])[0] - hidden_LD).abs() > 1e-2).any())


@torch.no_grad()
def test_padded_equals_alone(loaded: tuple[Denoiser, BlockReference]) -> None:
    denoiser, _ = loaded
    lengths_B = torch.tensor([21, 9, 2])
    pairs = [_clean_and_state(21, seed=seed) for seed in range(3)]
    clean_BL = torch.stack([clean for clean, _ in pairs])
    state_BL = torch.stack([state for _, state in pairs])
    mask_BL = padding_mask(lengths_B, 21)
    plain = denoiser(state_BL, mask_BL)
    two = denoiser(state_BL, mask_BL, clean_ids_BL=clean_BL)
    assert bool(plain.isfinite().all()) and bool(two.isfinite().all())
    for b, n in enumerate(lengths_B.tolist()):
        alone = denoiser(state_BL[b : b + 1, :n])[0]
        torch.testing.assert_close(plain[b, :n], alone, atol=ATOL, rtol=0)
        alone = denoiser(state_BL[b : b + 1, :n], clean_ids_BL=clean_BL[b : b + 1, :n])[0]
        torch.testing.assert_close(two[b, :n], alone, atol=ATOL, rtol=0)


@torch.no_grad()
def test_a_state_of_sampling_needs_no_clean_ids(loaded: tuple[Denoiser, BlockReference]) -> None:
    """Blocks before the one at work hold no mask, so both forwards see the same there."""
    denoiser, _ = loaded
    block_length = denoiser.info.block_length
    assert block_length is not None
    clean_L, _ = _clean_and_state(3 * block_length)
    state_L = clean_L.clone()
    state_L[block_length + 1 :] = MASK_ID
    plain = denoiser(state_L[None])[0]
    two = denoiser(state_L[None], clean_ids_BL=clean_L[None])[0]
    at_work = slice(block_length, 2 * block_length)
    torch.testing.assert_close(plain[at_work], two[at_work], atol=ATOL, rtol=0)


@torch.no_grad()
def test_gradients_reach_both_streams(loaded: tuple[Denoiser, BlockReference]) -> None:
    denoiser, _ = loaded
    clean_L, state_L = _clean_and_state(21)
    with torch.enable_grad():
        denoiser(state_L[None], clean_ids_BL=clean_L[None]).sum().backward()
    body = [name for name, p in denoiser.named_parameters() if p.grad is None]
    denoiser.zero_grad()
    # Experts that no token chose are in one tensor with the others.
    assert [name for name in body if "lm_head" not in name] == []


def test_full_attention_refuses_clean_ids(tiny_denoiser: Denoiser) -> None:
    ids_BL = torch.tensor([[4, 5, 6]])
    with pytest.raises(ValueError, match="clean_ids_BL must be None"):
        tiny_denoiser(ids_BL, clean_ids_BL=ids_BL)


def test_the_block_length_is_the_callers_else_the_configs(tmp_path: Path) -> None:
    fixture = FIXTURES[0]
    fixture.build(tmp_path)
    assert load_denoiser(str(tmp_path)).info.block_length == 4
    assert load_denoiser(str(tmp_path), block_length=8).info.block_length == 8
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        load_denoiser(str(tmp_path), block_length=0)


@pytest.mark.parametrize(
    "changes", [{"score_function": "softmax"}, {"use_bias": True}, {"norm_head": True}]
)
def test_a_llada2_config_beyond_its_published_layers_is_refused(
    changes: Mapping[str, object],
) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} of a llada2_moe checkpoint"):
        Llada2Moe.read_config({**block_diffusion.LLADA2, **changes})
