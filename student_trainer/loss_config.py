"""Which loss is trained: its terms, the weight of a position, and what the sum is divided by.

Three definitions of "the" cross-entropy of a masked diffusion model are in use; each is a choice of
`weighting` and `normalizer`:

- LLaDA (arXiv:2502.09992): `inv_t` with `all_tokens` in pre-training and `sequence` in fine-tuning:
  the sum of ce / t over masked positions divided by all tokens, a bound on the likelihood.
- Open-dLLM (github.com/pengzhangzhi/Open-dLLM): `path` with `masked_tokens`: the sum of
  (1 + p) * ce / t, p the student's own probability of the true token, over the number masked.
- The plain mean over masked tokens, as in BERT (arXiv:1810.04805): `none` with `masked_tokens`.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]
Weighting = Literal["none", "inv_t", "path"]
Normalizer = Literal["masked_tokens", "all_tokens", "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Which loss is trained. The defaults distil by forward KL under LLaDA's weighting."""

    alpha: float = 0.5
    """Share of the teacher's term: 0 trains on the data alone and never looks at the teacher, 1 on
    the teacher alone and needs no labels."""
    temperature: float = 1.0
    """Divides the logits of both sides in the teacher's term, which is then multiplied by its
    square so that gradients keep their size (arXiv:1503.02531). No effect on the cross-entropy."""
    divergence: DivergenceName = "forward_kl"
    """forward_kl to make a model smaller, reverse_kl to take fewer steps, jsd between them."""
    jsd_beta: float = 0.5
    """The teacher's share of the mixture in jsd; 0.5 is the symmetric Jensen-Shannon divergence."""
    weighting: Weighting = "inv_t"
    """Weight of a position masked at time t: none 1, inv_t 1 / t, path (1 + p) / t."""
    normalizer: Normalizer = "all_tokens"
    """What the sum is divided by: masked positions, all tokens, or sequences (with every position
    first divided by the length of its own sequence)."""
    max_chunk_elements: int = 3 * 2**21
    """Positions times vocabulary that are looked at together: 24 MiB a tensor in float32, of which
    about eight are alive at once. Each chunk also goes over the whole head and its gradient: with
    151,936 ids, 2**21 took one and a half times as long. A GPU with memory to spare likes more."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not 0.0 < self.jsd_beta < 1.0:
            raise ValueError(f"jsd_beta must be in (0, 1), got {self.jsd_beta}")
        if self.max_chunk_elements < 1:
            raise ValueError(
                f"max_chunk_elements must be at least 1, got {self.max_chunk_elements}"
            )
        _require_one_of("divergence", self.divergence, get_args(DivergenceName))
        _require_one_of("weighting", self.weighting, get_args(Weighting))
        _require_one_of("normalizer", self.normalizer, get_args(Normalizer))


def position_weights(t_M: Tensor, row_length_M: Tensor, config: LossConfig) -> Tensor:
    """Weights of positions from their mask probability t and the length of their sequence.

    The factor 1 + p of `path` is not in it: p needs the student's logits, so it is applied to the
    chunk that holds them.

    Returns:
        [M] float32 (float64 if t is).
    """
    weights_M = torch.ones_like(t_M) if config.weighting == "none" else t_M.reciprocal()
    if config.normalizer == "sequence":
        weights_M = weights_M / row_length_M
    return weights_M


def normalizer_count(
    config: LossConfig, *, num_masked: int, num_tokens: int, num_sequences: int
) -> int:
    """This rank's share of the normaliser; the sum over ranks and accumulation steps divides.

    Args:
        num_masked: Positions with a loss.
        num_tokens: Positions that could have been masked, masked or not; never padding.
    """
    counts = {
        "masked_tokens": num_masked,
        "all_tokens": num_tokens,
        "sequence": num_sequences,
    }
    return counts[config.normalizer]


def _require_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
