"""Softmax, draw and confidence over the few ids that a top-k filter keeps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.samplers.largest import Largest
from masked_diffusion.samplers.vocabulary import MIN_PROBABILITY


@dataclass(frozen=True, kw_only=True, eq=False)
class FewIdsSoftmax:
    """softmax(logits / temperature) over some ids of each row; made by `few_ids_softmax`.

    Sums go from left to right, so that a row's pads, which follow and weigh nothing, never change
    them.
    """

    kept: Largest
    masses_MN: Tensor
    """[M, N] float32: exp((logit - largest) / temperature); 0 at pads."""
    cumulative_MN: Tensor
    """[M, N] float64."""

    def probabilities(self, token_ids_M: Tensor) -> Tensor:
        """[M] float32, of ids that are kept."""
        # A pad has the last id too, but mass only where it is that id itself.
        is_token_MN = self.kept.ids_MN == token_ids_M[:, None]
        mass_M = self.masses_MN.where(is_token_MN, 0).sum(-1)
        return (mass_M / self._total).float()

    def margins(self) -> Tensor:
        """[M] float32: the probabilities of the two likeliest ids, subtracted."""
        num_looked_at = min(2, self.masses_MN.shape[1])
        largest_MK = self.masses_MN.topk(num_looked_at, dim=-1).values / self._total[:, None]
        largest_MK = largest_MK.float()
        return largest_MK[:, 0] - largest_MK[:, 1:].sum(-1)

    def negative_entropies(self) -> Tensor:
        """[M] float32, in nats."""
        p_MN = self.masses_MN / self._total[:, None]
        return (p_MN * p_MN.clamp_min(MIN_PROBABILITY).log()).cumsum(-1)[:, -1].float()

    def draw(self, uniforms_M: Tensor) -> Tensor:
        """Finds the first id, in the order of ids, at which the cumulative probability exceeds u.

        An id of probability 0 is never returned, not even by rounding.

        Args:
            uniforms_M: [M] float64 in (0, 1).

        Returns:
            [M] int64.
        """
        # u * total stays below total for every float64 u < 1, so the search ends at an id with
        # mass; the clamp is for masses that are not numbers.
        target_M1 = (uniforms_M.double() * self._total)[:, None]
        found_M1 = torch.searchsorted(self.cumulative_MN, target_M1, right=True)
        place_M1 = found_M1.clamp_max(self.masses_MN.shape[1] - 1)
        return self.kept.ids_MN.gather(1, place_M1)[:, 0]

    @property
    def _total(self) -> Tensor:
        """[M] float64."""
        return self.cumulative_MN[:, -1]


def few_ids_softmax(kept: Largest, *, temperature: float) -> FewIdsSoftmax:
    """Prepares draws from the ids that are kept.

    Args:
        temperature: Divides the logits first; above 0.
    """
    scaled_MN = kept.values_MN / temperature
    masses_MN = (scaled_MN - scaled_MN.amax(-1, keepdim=True)).exp_()
    return FewIdsSoftmax(
        kept=kept, masses_MN=masses_MN, cumulative_MN=masses_MN.double().cumsum(-1)
    )
