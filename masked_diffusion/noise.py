"""The forward process of each kind of noise, behind one call."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from masked_diffusion.families.info import DenoiserInfo, Noise
from masked_diffusion.forward_process import NoisedBatch, mask_tokens
from masked_diffusion.uniform_noise import replace_tokens, uniform_ids

Draw = Callable[[str], Tensor]
"""Stream -> [B, L] float64 uniforms in (0, 1), keyed by the row's sequence."""


class ForwardProcess(Protocol):
    """Draws xt from q(xt given x0), each position on its own."""

    def __call__(
        self,
        x0_BL: Tensor,
        *,
        info: DenoiserInfo,
        noisable_BL: Tensor,
        t_B: Tensor,
        lengths_B: Tensor,
        draw: Draw,
    ) -> NoisedBatch: ...


def _absorbing(
    x0_BL: Tensor,
    *,
    info: DenoiserInfo,
    noisable_BL: Tensor,
    t_B: Tensor,
    lengths_B: Tensor,
    draw: Draw,
) -> NoisedBatch:
    return mask_tokens(
        x0_BL,
        maskable_BL=noisable_BL,
        t_B=t_B,
        uniforms_BL=draw("mask"),
        mask_token_id=info.mask_token_id,
        lengths_B=lengths_B,
    )


def _uniform(
    x0_BL: Tensor,
    *,
    info: DenoiserInfo,
    noisable_BL: Tensor,
    t_B: Tensor,
    lengths_B: Tensor,
    draw: Draw,
) -> NoisedBatch:
    return replace_tokens(
        x0_BL,
        noisable_BL=noisable_BL,
        t_B=t_B,
        uniforms_BL=draw("mask"),
        noise_BL=uniform_ids(draw("noise"), info),
        lengths_B=lengths_B,
    )


FORWARD_PROCESSES: Mapping[Noise, ForwardProcess] = {
    "absorbing": _absorbing,
    "uniform": _uniform,
}
