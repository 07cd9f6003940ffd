import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from masked_diffusion.families import EXCLUDED_LOGIT
from masked_diffusion.samplers import vocabulary
from masked_diffusion.samplers.cut import find_cut
from masked_diffusion.samplers.tokens import sample_tokens
from masked_diffusion.samplers.vocabulary import tiled_softmax


@pytest.fixture
def tiles_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "TILE_IDS", 4)


class _LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that an operation made, views left out."""

    num_elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        given = {
            part.untyped_storage().data_ptr()
            for part in tree_leaves((arguments, options))
            if isinstance(part, Tensor)
        }
        for part in tree_leaves(result):
            if isinstance(part, Tensor) and part.untyped_storage().data_ptr() not in given:
                self.num_elements = max(self.num_elements, part.numel())
        return result


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(0.0, None, None), (0.7, None, None), (0.7, None, 200), (1.0, 0.95, 200), (0.7, 0.9, None)],
)
@pytest.mark.parametrize("confidence", ["probability", "margin", "negative_entropy"])
def test_nothing_of_the_size_of_the_logits_is_written(
    temperature: float, top_p: float | None, top_k: int | None, confidence: Any
) -> None:
    logits_MV = 4 * torch.randn(3, 100_000, generator=torch.Generator().manual_seed(0))
    with _LargestResult() as largest:
        sample_tokens(
            logits_MV,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            confidence=confidence,
            uniforms_M=torch.full((3,), 0.4, dtype=torch.float64),
        )
    # A top-k filter looks at the maxima of tiles first.
    assert 0 < largest.num_elements <= logits_MV.numel() // 16
    with _LargestResult() as largest:
        torch.softmax(logits_MV, -1)
    assert largest.num_elements == logits_MV.numel()


@settings(deadline=None)
@given(
    logits=st.lists(st.integers(-4, 4), min_size=2, max_size=19),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_p=st.sampled_from([None, 0.141, 0.613]),
    top_k=st.sampled_from([None, 1, 3, 30]),
    uniform=st.floats(2.0**-53, 1 - 2.0**-53),
)
def test_tiles_of_any_size_draw_and_measure_alike(
    logits: list[int],
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    uniform: float,
) -> None:
    logits_MV = torch.tensor([logits, logits[::-1]], dtype=torch.float32)
    cut = find_cut(logits_MV, top_p=top_p, top_k=top_k, temperature=temperature)
    uniforms_M = torch.full((2,), uniform, dtype=torch.float64)
    found = []
    for tile_ids in (3, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "TILE_IDS", tile_ids)
            softmax = tiled_softmax(logits_MV, temperature=temperature, cut=cut)
            found.append(
                (softmax.margins(), softmax.negative_entropies(), softmax.draw(uniforms_M))
            )
    (margins, entropies, drawn), (margins_whole, entropies_whole, drawn_whole) = found
    torch.testing.assert_close(margins, margins_whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(entropies, entropies_whole, atol=1e-6, rtol=0)
    # Only a uniform within a rounding of an edge may fall on its other side.
    p_MV = softmax.masses_MT.new_tensor(logits_MV.tolist()).div(temperature).exp()
    if cut is not None:
        scaled_MV = logits_MV / temperature
        ranks_MV = (scaled_MV == cut.boundary_M1).cumsum(-1) - 1
        p_MV = p_MV.masked_fill(~cut.keeps(scaled_MV, ranks_MV), 0)
    edges_MV = p_MV.cumsum(-1) / p_MV.sum(-1, keepdim=True)
    if bool(((edges_MV - uniform).abs() > 1e-6).all()):
        assert torch.equal(drawn, drawn_whole)
        assert torch.equal(drawn, torch.searchsorted(edges_MV, uniforms_M[:, None])[:, 0])


@pytest.mark.usefixtures("tiles_of_4")
@pytest.mark.parametrize("uniform", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_a_tile_without_mass_is_never_drawn_from(uniform: float) -> None:
    logits_MV = torch.full((1, 18), EXCLUDED_LOGIT)
    logits_MV[0, [5, 6, 13]] = torch.tensor([0.0, 1.0, 0.5])
    softmax = tiled_softmax(logits_MV, temperature=1.0, cut=None)
    drawn = softmax.draw(torch.tensor([uniform], dtype=torch.float64)).item()
    assert drawn in (5, 6, 13)
    assert softmax.total.item() == pytest.approx(math.exp(-1) + 1 + math.exp(-0.5))


def test_a_row_is_cut_as_it_would_be_alone() -> None:
    """The nucleus of a flat row is looked for among more ids than that of a peaked one."""
    generator = torch.Generator().manual_seed(0)
    logits_MV = torch.stack([torch.randn(5000, generator=generator) * scale for scale in (0.1, 9)])
    together = find_cut(logits_MV, top_p=0.9, top_k=None)
    assert together is not None and together.num_equal_M1 is not None
    for row, logits_V in enumerate(logits_MV):
        alone = find_cut(logits_V[None], top_p=0.9, top_k=None)
        assert alone is not None and alone.num_equal_M1 is not None
        assert torch.equal(together.boundary_M1[row], alone.boundary_M1[0])
        assert torch.equal(together.num_equal_M1[row], alone.num_equal_M1[0])
        kept = logits_V >= alone.boundary_M1[0]
        assert kept.sum() > (2000 if row == 0 else 5)
        assert logits_V.softmax(-1)[kept].sum().item() == pytest.approx(0.9, abs=0.02)
