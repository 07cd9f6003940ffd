"""Rows of several documents: every family gives what it gives each document alone, or refuses."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, document_masks
from tests.fixtures.fixture import FamilyFixture
from tests.fixtures.table import family_fixtures

LENGTHS = (9, 4, 7)

FIXTURES = family_fixtures()
REFUSED = {
    "a2d-qwen3-bd3lm": "attends by blocks",
    "fast_dllm": "attends by blocks",
    "llada2_moe": "attends by blocks",
    "mdlm-time": "every row has one time",
    "sdar": "attends by blocks",
    "sdar_moe": "attends by blocks",
}
"""Fixtures that cannot be packed, and why."""


@pytest.fixture(scope="module", params=sorted(FIXTURES.keys() - REFUSED.keys()))
def denoiser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    return load(request.param, tmp_path_factory)


def load(name: str, tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    fixture: FamilyFixture = FIXTURES[name]
    folder: Path = tmp_path_factory.mktemp("families") / fixture.name
    fixture.build(folder)
    return checkpoints.load_denoiser(str(folder), **fixture.load_options).float()


def documents(denoiser: Denoiser, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(denoiser.info.vocab_size, (n,), generator=generator) for n in LENGTHS]
    for ids_L in drawn:
        ids_L[1::3] = denoiser.info.mask_token_id
    return drawn


def packed_hidden_states(denoiser: Denoiser, parts: list[Tensor], *, padding: int = 3) -> Tensor:
    ids_L = torch.cat([*parts, torch.zeros(padding, dtype=torch.int64)])
    document_ids_L = torch.cat(
        [torch.full_like(part, index) for index, part in enumerate(parts)]
        + [torch.full((padding,), document_masks.PADDING)]
    )
    with torch.no_grad():
        hidden: Tensor = denoiser(ids_L[None], document_ids_BL=document_ids_L[None])[0]
    return hidden


def test_a_packed_document_gives_what_it_gives_alone(denoiser: Denoiser) -> None:
    assert denoiser.packing_obstacle is None
    parts = documents(denoiser)
    packed_LD = packed_hidden_states(denoiser, parts)
    first = denoiser.info.num_invalid_leading_positions
    for part, found_LD in zip(parts, packed_LD.split([*LENGTHS, 3]), strict=False):
        with torch.no_grad():
            alone_LD = denoiser(part[None])[0]
        # Float32 sums in another order, at hidden states of size 1 to 10.
        torch.testing.assert_close(found_LD[first:], alone_LD[first:], atol=1e-5, rtol=1e-5)


def test_a_document_does_not_hear_of_its_neighbours(denoiser: Denoiser) -> None:
    parts, other = documents(denoiser), documents(denoiser, seed=1)
    first = denoiser.info.num_invalid_leading_positions
    middle = slice(LENGTHS[0] + first, LENGTHS[0] + LENGTHS[1])

    kept = packed_hidden_states(denoiser, parts)
    poisoned = packed_hidden_states(denoiser, [other[0], parts[1], other[2]])

    assert torch.equal(kept[middle], poisoned[middle])
    assert not torch.equal(kept[: LENGTHS[0]], poisoned[: LENGTHS[0]])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_say_why_they_cannot(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    denoiser = load(name, tmp_path_factory)
    with pytest.raises(ValueError, match=f"document_ids_BL must be None for .*{REFUSED[name]}"):
        packed_hidden_states(denoiser, documents(denoiser))


def test_positions_begin_again_with_every_document() -> None:
    document_ids_BL = torch.tensor([[0, 0, 1, 1, 1, -1], [2, 3, 3, 3, -1, -1]])
    wanted = [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 0, 1]]
    assert document_masks.positions_in_documents(document_ids_BL).tolist() == wanted
