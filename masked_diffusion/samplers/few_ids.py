"""Softmax, draw and confidence over the few ids that a top-k filter keeps."""

from dataclasses import dataclass

from torch import Tensor

from masked_diffusion.samplers.inverse_cdf import invert_cdf
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
    total_M: Tensor
    """[M] float64: what the masses add up to."""

    def probabilities(self, token_ids_M: Tensor) -> Tensor:
        """[M] float32, of ids that are kept."""
        # A pad has the last id too, but mass only where it is that id itself.
        is_token_MN = self.kept.ids_MN == token_ids_M[:, None]
        mass_M = self.masses_MN.where(is_token_MN, 0).sum(-1)
        return (mass_M / self.total_M).float()

    def margins(self) -> Tensor:
        """[M] float32: the probabilities of the two likeliest ids, subtracted."""
        num_looked_at = min(2, self.masses_MN.shape[1])
        largest_MK = self.masses_MN.topk(num_looked_at, dim=-1).values / self.total_M[:, None]
        largest_MK = largest_MK.float()
        return largest_MK[:, 0] - largest_MK[:, 1:].sum(-1)

    def negative_entropies(self) -> Tensor:
        """[M] float32, in nats."""
        p_MN = self.masses_MN / self.total_M[:, None]
        return (p_MN * p_MN.clamp_min(MIN_PROBABILITY).log()).cumsum(-1)[:, -1].float()

    def draw(self, uniforms_M: Tensor) -> Tensor:
        """Finds the first id, in the order of ids, at which the cumulative probability exceeds u.

        Args:
            uniforms_M: [M] float64 in (0, 1).

        Returns:
            [M] int64.
        """
        places_M = invert_cdf(self.masses_MN, uniforms_M)
        return self.kept.ids_MN.gather(1, places_M[:, None])[:, 0]


def few_ids_softmax(kept: Largest, *, temperature: float) -> FewIdsSoftmax:
    """Prepares draws from the ids that are kept.

    Args:
        temperature: Divides the logits first; above 0.
    """
    scaled_MN = kept.values_MN / temperature
    masses_MN = (scaled_MN - scaled_MN.amax(-1, keepdim=True)).exp_()
    total_M = masses_MN.double().cumsum(-1)[:, -1]
    return FewIdsSoftmax(kept=kept, masses_MN=masses_MN, total_M=total_M)
