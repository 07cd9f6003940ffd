import pytest
import torch
from torch import Tensor

from masked_diffusion.block_cache import BlockCaches, BlockRow
from masked_diffusion.checkpoints import load_denoiser
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from tests.fixtures.block_diffusion import FIXTURES, MASK_ID

ATOL = 1e-5
PLENTY = 2**30


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda fixture: fixture.name)
def denoiser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    folder = tmp_path_factory.mktemp(request.param.name)
    request.param.build(folder)
    return load_denoiser(str(folder), **request.param.load_options)


def _starts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 290, (length,), generator=generator) for length in (37, 50, 23)]
    for row, num_given in zip(rows, (4, 12, 1), strict=True):
        row[num_given:] = MASK_ID
    return rows


def _block_row(key: int, ids_L: Tensor, block_length: int) -> BlockRow:
    open_L = ids_L == MASK_ID
    first = int(open_L.nonzero()[0])
    end = (first // block_length + 1) * block_length
    needed_L = open_L & (torch.arange(len(ids_L)) < end)
    return BlockRow(key=key, ids_L=ids_L, open_L=open_L, needed_L=needed_L)


@torch.no_grad()
def _sample(denoiser: Denoiser, caches: BlockCaches) -> list[Tensor]:
    """Greedy: the surest masked position of each row's block, until none is left."""
    rows = _starts()
    block_length = denoiser.info.block_length
    assert block_length is not None
    while live := [i for i, ids in enumerate(rows) if bool((ids == MASK_ID).any())]:
        batch = [_block_row(i, rows[i], block_length) for i in live]
        for i, row, hidden_LD in zip(live, batch, caches.hidden_states(batch), strict=True):
            places = row.needed_L.nonzero()[:, 0]
            alone_LD = denoiser(row.ids_L[None])[0]
            torch.testing.assert_close(hidden_LD[places], alone_LD[places], atol=ATOL, rtol=0)
            p_MV = denoiser.logits(hidden_LD[places]).softmax(-1)
            best = int(p_MV.amax(-1).argmax())
            rows[i] = rows[i].clone()
            rows[i][places[best]] = p_MV[best].argmax()
        assert caches.num_bytes <= caches._max_bytes
    return rows


def test_cached_equals_uncached(denoiser: Denoiser) -> None:
    cached, tight = (BlockCaches(denoiser, max_bytes=size) for size in (PLENTY, 2**14))
    uncached = BlockCaches(denoiser, max_bytes=0)
    expected = _sample(denoiser, uncached)
    for caches in (cached, tight):
        assert all(map(torch.equal, _sample(denoiser, caches), expected))
    assert uncached.num_bytes == 0 < tight.num_bytes < cached.num_bytes
    assert cached.num_forward_tokens < tight.num_forward_tokens < uncached.num_forward_tokens
    for key in range(3):
        cached.drop(key)
        cached.drop(key)
    assert cached.num_bytes == 0


@torch.no_grad()
def test_a_finished_token_that_changes_costs_a_new_start(denoiser: Denoiser) -> None:
    block_length = denoiser.info.block_length
    assert block_length is not None
    ids_L = _starts()[1]
    caches = BlockCaches(denoiser, max_bytes=PLENTY)
    caches.hidden_states([_block_row(0, ids_L, block_length)])
    assert caches.num_bytes > 0
    changed_L = ids_L.clone()
    changed_L[1] = 7
    row = _block_row(0, changed_L, block_length)
    hidden_LD = caches.hidden_states([row])[0]
    expected_LD = denoiser(changed_L[None])[0]
    torch.testing.assert_close(
        hidden_LD[row.needed_L], expected_LD[row.needed_L], atol=ATOL, rtol=0
    )


def test_full_attention_has_no_cache(tiny_denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="has full attention"):
        BlockCaches(tiny_denoiser, max_bytes=0)


def test_sampling_in_process_is_the_same_with_and_without_a_cache(denoiser: Denoiser) -> None:
    start_L = _starts()[0]
    start_L[17:] = 5
    config = SamplerConfig(algorithm="maskgit_plus", num_steps=9)
    results = [
        sample(
            denoiser,
            start_L[None],
            frozen_BL=(start_L != MASK_ID)[None],
            lengths_B=torch.tensor([len(start_L)]),
            config=config,
            seeds=[0],
            sequence_ids=[0],
            max_cache_bytes=max_cache_bytes,
        )
        for max_cache_bytes in (PLENTY, 0)
    ]
    assert torch.equal(results[0].x, results[1].x)
    assert not bool((results[0].x == MASK_ID).any())
