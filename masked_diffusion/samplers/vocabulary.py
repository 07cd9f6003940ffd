"""Softmax, draw and confidence over a large vocabulary, a tile of ids at a time.

Nothing of the size [positions, vocabulary] is written but the logits that came in: a tile stays in
the processor's cache, where several passes over all ids would each fetch them from memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.cut import Cut

TILE_IDS = 1024
"""Ids of a tile. A draw goes over one of them id by id, in float64; with a hundred positions a tile
is 400 KiB of float32, where what an operation costs by itself no longer counts."""
MIN_PROBABILITY = 1e-10
"""Floor inside the logarithm of the entropy, as upstream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledSoftmax:
    """softmax(logits / temperature) over what a cut keeps; made by `tiled_softmax`."""

    logits_MV: Tensor
    temperature: float
    cut: Cut | None
    """None keeps all."""
    largest_M1: Tensor
    """[M, 1] float32: the largest of logits / temperature."""
    masses_MT: Tensor
    """[M, tiles] float64: the sum of exp(logit / temperature - largest) over a tile's kept ids."""
    num_equal_MT: Tensor
    """[M, tiles] int64: ids before the tile that lie on the cut."""

    @property
    def total(self) -> Tensor:
        """[M, 1] float64: what the masses add up to."""
        return self.masses_MT.sum(-1, keepdim=True)

    def probabilities(self, token_ids_M: Tensor) -> Tensor:
        """[M] float32, of ids that are kept."""
        logits_M1 = _scaled(self.logits_MV.gather(-1, token_ids_M[:, None]), self.temperature)
        mass_M1 = (logits_M1 - self.largest_M1).exp()
        return (mass_M1 / self.total)[:, 0].float()

    def margins(self) -> Tensor:
        """[M] float32: the probabilities of the two likeliest ids, subtracted."""
        values_M2 = _scaled(self.logits_MV.topk(2, dim=-1).values, self.temperature)
        masses_M2 = (values_M2 - self.largest_M1).exp()
        if self.cut is not None:
            second_M1 = values_M2[:, 1:]
            # Of two that are equal on the cut, the second in order of ids may be outside of it.
            rank_M1 = (second_M1 == self.largest_M1).long()
            masses_M2[:, 1:].masked_fill_(~self.cut.keeps(second_M1, rank_M1), 0)
        first_M, second_M = (masses_M2 / self.total).float().unbind(-1)
        return first_M - second_M

    def negative_entropies(self) -> Tensor:
        """[M] float32, in nats."""
        total_M1 = self.total.float()
        sums = torch.zeros_like(self.masses_MT[:, 0])
        for masses_MC, _ in _tiles(self.logits_MV, self.temperature, self.cut, self.largest_M1):
            probabilities_MC = masses_MC.div_(total_M1)
            logs_MC = probabilities_MC.clamp_min(MIN_PROBABILITY).log_()
            sums += probabilities_MC.mul_(logs_MC).sum(-1)
        return sums.float()

    def draw(self, uniforms_M: Tensor) -> Tensor:
        """Finds the first id, in the order of ids, at which the cumulative probability exceeds u.

        An id of probability 0 is never returned, not even by rounding.

        Args:
            uniforms_M: [M] float64 in (0, 1).

        Returns:
            [M] int64.
        """
        # cumsum, not sum: the two may differ in the last bit.
        ends_MT = self.masses_MT.cumsum(-1)
        target_M1 = uniforms_M.double()[:, None] * ends_MT[:, -1:]
        # The clamp is for masses that are not numbers: an id past the vocabulary would be an error
        # far from here, and on a GPU the end of the process.
        tile_M1 = torch.searchsorted(ends_MT, target_M1, right=True).clamp_max(ends_MT.shape[1] - 1)
        num_ids = self.logits_MV.shape[1]
        ids_MC = tile_M1 * TILE_IDS + torch.arange(
            min(TILE_IDS, num_ids), device=self.logits_MV.device
        )
        is_id_MC = ids_MC < num_ids
        logits_MC = self.logits_MV.gather(-1, ids_MC.clamp_max(num_ids - 1))
        masses_MC, _ = _masses(
            _scaled(logits_MC, self.temperature),
            self.largest_M1,
            self.cut,
            self.num_equal_MT.gather(-1, tile_M1),
        )
        masses_MC = masses_MC.masked_fill_(~is_id_MC, 0).double()
        cdf_MC = masses_MC.cumsum(-1)
        inside_M1 = target_M1 - (ends_MT - self.masses_MT).gather(-1, tile_M1)
        # The tile was summed in another order: stay below its end, where an id has mass.
        below_M1 = torch.nextafter(cdf_MC[:, -1:], torch.zeros_like(target_M1))
        inside_M1 = inside_M1.clamp_min(0).minimum(below_M1)
        found_M1 = torch.searchsorted(cdf_MC, inside_M1, right=True)
        return (tile_M1 * TILE_IDS + found_M1).clamp_max(num_ids - 1)[:, 0]


def tiled_softmax(logits_MV: Tensor, *, temperature: float, cut: Cut | None) -> TiledSoftmax:
    """Goes over all ids once.

    Args:
        logits_MV: [M, V] float32; not changed.
        temperature: Divides them first; above 0.
        cut: Of logits / temperature.
    """
    largest_M1 = _scaled(logits_MV.amax(-1, keepdim=True), temperature)
    masses, num_equal = [], []
    for masses_MC, num_equal_M1 in _tiles(logits_MV, temperature, cut, largest_M1):
        masses.append(masses_MC.sum(-1, keepdim=True).double())
        num_equal.append(num_equal_M1)
    return TiledSoftmax(
        logits_MV=logits_MV,
        temperature=temperature,
        cut=cut,
        largest_M1=largest_M1,
        masses_MT=torch.cat(masses, dim=-1),
        num_equal_MT=torch.cat(num_equal, dim=-1),
    )


def _tiles(
    logits_MV: Tensor, temperature: float, cut: Cut | None, largest_M1: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Masses of each tile, which the caller may write into, and the ids on the cut before it."""
    num_equal_M1 = torch.zeros_like(largest_M1, dtype=torch.int64)
    for logits_MC in logits_MV.split(TILE_IDS, dim=-1):
        masses_MC, num_more_M1 = _masses(
            _scaled(logits_MC, temperature), largest_M1, cut, num_equal_M1
        )
        yield masses_MC, num_equal_M1
        num_equal_M1 = num_equal_M1 + num_more_M1


def _masses(
    scaled_MC: Tensor, largest_M1: Tensor, cut: Cut | None, num_equal_M1: Tensor
) -> tuple[Tensor, Tensor | int]:
    masses_MC = (scaled_MC - largest_M1).exp_()
    if cut is None:
        return masses_MC, 0
    num_more_M1: Tensor | int = 0
    is_below_MC = scaled_MC < cut.boundary_M1
    if cut.num_equal_M1 is not None:
        is_equal_MC = scaled_MC == cut.boundary_M1
        num_more_M1 = is_equal_MC.sum(-1, keepdim=True)
        # Counting ids one by one costs more than all else, and equals are rarely cut.
        if bool((num_equal_M1 + num_more_M1 > cut.num_equal_M1).any()):
            ranks_MC = num_equal_M1 + is_equal_MC.cumsum(-1) - 1
            is_below_MC = ~cut.keeps(scaled_MC, ranks_MC)
    return masses_MC.masked_fill_(is_below_MC, 0), num_more_M1


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature
